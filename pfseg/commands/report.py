"""Compare runs: `pfseg report <folders> [--html page.html]`; `--help` lists everything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pfseg.errors import ConfigError, PfsegError, WriteError
from pfseg.files import shown, write_atomic
from pfseg.reporting.page import to_html
from pfseg.reporting.runs import find_runs, read_runs
from pfseg.reporting.selection import compare_groups, group_seeds, select
from pfseg.reporting.table import build_table, print_table, to_csv, to_latex, to_markdown
from pfseg.tracking import terminal

_FORMS = {"html": to_html, "csv": to_csv, "markdown": to_markdown, "latex": to_latex}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        _report(args)
    except PfsegError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfseg-report", description="Compare runs: a table here, and where asked for as a page or in a file."
    )
    parser.add_argument("places", nargs="+", metavar="folder", help="run folders, folders above them, or patterns")
    parser.add_argument("--html", metavar="FILE", help="one page with curves, classes, confusion and pictures")
    parser.add_argument("--csv", metavar="FILE", help="the table in full precision")
    parser.add_argument("--markdown", metavar="FILE", help="the table for a README")
    parser.add_argument("--latex", metavar="FILE", help="the table for a paper (booktabs)")
    parser.add_argument("--where", metavar="KEY=VALUE", action="append", default=[], help="only such runs; repeatable")
    parser.add_argument("--sort", metavar="KEY[:asc|desc]", help="a column or setting; default mIoU:desc")
    return parser


def _report(args: argparse.Namespace) -> None:
    table = build_table(select(read_runs(find_runs(args.places)), args.where), args.sort)
    console = terminal.console()
    print_table(table, console)
    for first, second, difference in compare_groups(group_seeds(table.runs)):
        console.print(
            f"best mIoU, {second.label} minus {first.label}: {difference.mean:+.2f} ± {difference.half_width:.2f} "
            f"(95 % interval over {difference.n} seeds)",
            markup=False,
            highlight=False,
        )
    for form, convert in _FORMS.items():
        if (file := getattr(args, form)) is not None:
            _write(Path(file), form, convert(table))


def _write(path: Path, form: str, content: str) -> None:
    try:
        write_atomic(path, content)
    except WriteError as error:
        cause = error.__cause__
        raise ConfigError(f"--{form} {path} can't be written ({cause}): give a file in a folder of yours") from error
    sys.stdout.write(f"{form}: {shown(path.absolute())}\n")


if __name__ == "__main__":
    sys.exit(main())
