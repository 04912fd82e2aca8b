"""`pfseg report`: compare runs, in a table here and in files."""

from __future__ import annotations

import sys
from pathlib import Path

from pfseg.config.commands import Report
from pfseg.files import shown, write_atomic
from pfseg.reporting.page import to_html
from pfseg.reporting.runs import find_runs, read_runs
from pfseg.reporting.selection import compare_groups, group_seeds, select
from pfseg.reporting.table import build_table, print_table, to_csv, to_latex, to_markdown
from pfseg.tracking import terminal

_FORMS = {"html": to_html, "csv": to_csv, "markdown": to_markdown, "latex": to_latex}


def run(settings: Report) -> None:
    """Show the runs as a table, and write the files asked for."""
    table = build_table(select(read_runs(find_runs(settings.runs)), settings.where), settings.sort)
    console = terminal.console()
    print_table(table, console)
    for first, second, difference in compare_groups(group_seeds(table.runs)):
        interval = f"± {difference.half_width:.2f} (95 % interval over {difference.n} seeds)"
        text = f"best mIoU, {second.label} minus {first.label}: {difference.mean:+.2f} {interval}"
        console.print(text, markup=False, highlight=False)
    for form, convert in _FORMS.items():
        if (file := getattr(settings, form)) is not None:
            path = Path(file).absolute()
            write_atomic(path, convert(table))
            sys.stdout.write(f"{form}: {shown(path)}\n")
