"""The table of runs, and its forms: terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pfseg.config.validation import as_typed, unknown_key
from pfseg.errors import ConfigError
from pfseg.reporting.runs import Run
from pfseg.reporting.selection import SeedGroup, differing, group_seeds
from pfseg.reporting.statistics import Spread
from pfseg.tracking import terminal
from pfseg.tracking.records import number

Cell = str | float | Spread | None
Cells = dict[str, Cell]  # by the key of their column
STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "lost": "magenta"}
_WIDE = 100  # columns of a terminal that shows a row for each run
_DIGITS = {"kappa": 4, "loss": 4}
_COST = {"parameters": "M param.", "macs": "G mult-adds", "images/s": "images/s"}
LESS_IS_BETTER = {"loss", "parameters", "macs"}
_ALWAYS = {"run", "status", "job", "mIoU", "last", "steps", "time"}
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|_*"} | {"<": "&lt;"})
_LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
})  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column; `key` names it for sorting, `digits` rounds its scores, `right` aligns numbers."""

    key: str
    title: str
    digits: int | None = None
    setting: bool = False
    right: bool = False


@dataclass
class RunRow:
    """Cells by column; `run` of a run's row, `group` of the row of a group's means."""

    cells: Cells
    run: Run | None = None
    group: SeedGroup | None = None


@dataclass
class RunTable:
    """Runs in the order of the table, then the means of the seed groups."""

    columns: list[Column]
    rows: list[RunRow]

    @property
    def runs(self) -> list[Run]:
        """The runs in their order."""
        return [row.run for row in self.rows if row.run is not None]

    @property
    def texts(self) -> list[list[str]]:
        """The titles of the columns, and the rows as a person reads them."""
        rows = [[text(column, row.cells.get(column.key)) for column in self.columns] for row in self.rows]
        return [[column.title for column in self.columns], *rows]


def build_table(runs: Sequence[Run], sort: str | None = None) -> RunTable:
    """Put the runs into a table, sorted by `key`, `key:asc` or `key:desc`: a column or any setting.

    Without `sort`, the best mIoU comes first.

    Raises:
        ConfigError: no such column or setting, or another direction.
    """
    settings = differing(runs)
    numeric = {
        key: all(number(run.settings[key]) is not None for run in runs if run.settings.get(key) is not None)
        for key in settings
    }
    names = list(dict.fromkeys(name for run in runs if run.best for name in run.best.scores if "/" not in name))
    columns = [Column("run", "run"), Column("status", "status")]
    columns += [Column("job", "job")] * (len({run.job for run in runs}) > 1)
    columns += [Column("mIoU", "best mIoU", 2, right=True), Column("last", "last mIoU", 2, right=True)]
    columns += [Column(key, key, setting=True, right=numeric[key]) for key in settings]
    if len({(run.parameters, run.macs) for run in runs}) > 1:  # several networks
        columns += [Column(key, title, 1, right=True) for key, title in _COST.items()]
    columns += [Column(name, name, _DIGITS.get(name, 2), right=True) for name in names if name != "mIoU"]
    columns += [Column("steps", "steps", right=True), Column("time", "time", right=True), Column("detail", "note")]
    rows = _sorted([RunRow(_cells(run, settings), run) for run in runs], sort)
    means = [RunRow(_means(group, columns), group=group) for group in group_seeds(runs)]
    used = {c.key for c in columns for row in rows if row.cells.get(c.key) not in (None, "")}
    kept = [column for column in columns if column.key in used or column.key in ("mIoU", "last")]
    return RunTable(kept, rows + means)


def text(column: Column, cell: Cell) -> str:
    """A cell as a person reads it; `-` where a score has no value."""
    if cell is None:
        return "-" if column.digits is not None else ""
    if isinstance(cell, str):
        return cell
    if column.key == "time" and not isinstance(cell, Spread):
        return terminal.duration(cell)
    return f"{cell:.{column.digits}f}" if column.digits is not None else str(cell)


def print_table(table: RunTable, console: Console) -> None:
    """Print to a terminal: a line for each run, or where it is narrow a few."""
    settings = [column.key for column in table.columns if column.setting]
    columns = [column for column in table.columns if not column.setting and column.key != "detail"]
    rows = []
    for row in table.rows:
        words = [f"{key}={row.cells[key]}" for key in settings if row.cells.get(key) is not None]
        rows.append(row.cells | {"settings": " ".join(words)})
    if console.width < _WIDE:
        _print_stacked(rows, columns, console)
        return
    columns = _fitting(rows, columns, console.width)
    if settings:
        columns.insert(1, Column("settings", "settings"))  # behind the run
    grid = terminal.table(*(c.title for c in columns), numbers={c.title for c in columns if c.right})
    if settings:
        grid.columns[1].ratio = 1
    for place, cells in enumerate(rows, 1):
        grid.add_row(*(_styled(column, cells) for column in columns), end_section=place == len(table.runs))
    console.print(grid)
    for cells in rows:
        if cells.get("detail"):
            console.print(Text.assemble((f"{cells['run']}: ", "bold"), str(cells["detail"])), soft_wrap=True)


def to_csv(table: RunTable) -> str:
    """Values in full precision; of a seed group a row of means and one of standard deviations."""
    rows: list[list[object]] = []
    for row in table.rows:
        cells = [row.cells.get(column.key) for column in table.columns]
        if row.group is None:
            rows.append([*cells])
            continue
        for word in ("mean", "std"):
            name = f"{word} of {len(row.group.runs)} seeds"  # the first column is the run
            rows.append([name, *(getattr(cell, word) if isinstance(cell, Spread) else cell for cell in cells[1:])])
    return csv_text([column.title for column in table.columns], rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file; None and NaN are empty cells."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if cell is None or cell != cell else cell for cell in row] for row in rows])
    return file.getvalue()


def to_markdown(table: RunTable) -> str:
    """A table of GitHub's Markdown."""
    lines = [[cell.translate(_MARKDOWN) for cell in row] for row in table.texts]
    lines.insert(1, ["---:" if column.right else "---" for column in table.columns])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(table: RunTable) -> str:
    r"""A `tabular` for `\usepackage{booktabs}`."""
    lines = [f"    {' & '.join(cell.translate(_LATEX) for cell in row)} \\\\\n" for row in table.texts]
    end = len(table.runs) + 1  # of the runs, behind the head
    means = ["    \\midrule\n", *lines[end:]] if lines[end:] else []
    layout = "".join("r" if column.right else "l" for column in table.columns)
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{layout}}}\n    \\toprule\n{lines[0]}    \\midrule\n"
        f"{''.join(lines[1:end] + means)}    \\bottomrule\n\\end{{tabular}}\n"
    )


def _cells(run: Run, settings: Sequence[str]) -> Cells:
    faults = f"{run.unreadable} unreadable line{'s' * (run.unreadable > 1)} left out" if run.unreadable else ""
    return {
        **{key: value for key, value in (run.best.scores if run.best else {}).items() if "/" not in key},
        **{key: as_typed(run.settings[key]) for key in settings if key in run.settings},
        "run": run.name,
        "status": run.status,
        "job": run.job,
        "mIoU": run.best.miou if run.best else None,
        "last": run.last.miou if run.last else None,
        "steps": f"{run.steps}/{run.total}" if run.total and run.steps < run.total else run.steps,
        "time": run.seconds,
        "parameters": run.parameters,
        "macs": run.macs,
        "images/s": run.speed,
        "detail": "; ".join(part for part in (run.detail, faults) if part),
    }


def _means(group: SeedGroup, columns: Sequence[Column]) -> Cells:
    cells: Cells = {key: as_typed(value) for key, value in group.settings.items()}
    cells |= {"run": f"mean ± std, {len(group.runs)} seeds", "job": group.runs[0].job}
    cells |= {"parameters": group.runs[0].parameters, "macs": group.runs[0].macs}
    members = [_cells(run, ()) for run in group.runs]
    for column in columns:
        if column.digits is not None and column.key not in cells:
            values = [cell if isinstance(cell := member.get(column.key), float) else None for member in members]
            cells[column.key] = group.spread(values)
    return cells


def _sorted(rows: list[RunRow], sort: str | None) -> list[RunRow]:
    """Rows in their order, those without a value at the end."""
    key, _, direction = (sort or "mIoU:desc").partition(":")
    if direction not in ("", "asc", "desc"):
        raise ConfigError(f"sort={sort}: expected key, key:asc or key:desc, got the direction {direction!r}")
    pairs = [(_sort_value(row, key), row) for row in rows]
    known = [(value, row) for value, row in pairs if value is not None]
    names = {name for row in rows if row.run for name in (*row.cells, *row.run.settings)}
    if sort and not known and key not in names:
        group = key.partition(".")[0]
        raise unknown_key(key, {name for name in names if "." not in name or name.startswith(group)})
    numeric = all(isinstance(value, float) for value, _ in known)
    known.sort(key=lambda pair: pair[0] if numeric else str(pair[0]), reverse=direction == "desc")
    return [row for _, row in known] + [row for value, row in pairs if value is None]


def _sort_value(row: RunRow, key: str) -> float | str | None:
    assert row.run is not None, "means are not sorted"
    value: object = row.run.steps if key == "steps" else row.cells.get(key, row.run.settings.get(key))
    if value is None:
        return None
    try:
        return float(as_typed(value))
    except ValueError:
        return as_typed(value)


def _fitting(rows: Sequence[Cells], columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out the further scores, the last ones first, until the rest fits."""

    def needed(column: Column) -> int:
        return 2 + max(len(column.title), *(len(text(column, cells.get(column.key))) for cells in rows))

    words = max(len(str(cells["settings"])) for cells in rows)
    room = max(width - words - 2 * (words > 0), width * 2 // 3)
    shown = list(columns)
    for column in reversed(columns):
        if column.key not in _ALWAYS and sum(map(needed, shown)) > room:
            shown.remove(column)
    return shown


def _print_stacked(rows: Sequence[Cells], columns: Sequence[Column], console: Console) -> None:
    for cells in rows:
        status = str(cells.get("status") or "")
        console.print(Text.assemble((str(cells["run"]), "bold"), "  ", (status, STYLES.get(status, ""))))
        others = [c for c in columns if c.key not in ("run", "status")]
        facts = [f"{c.title} {text(c, cell)}" for c in others if (cell := cells.get(c.key)) is not None]
        for line in (str(cells["settings"]), "   ".join(facts), str(cells.get("detail") or "")):
            if line:
                console.print(Padding(Text(line), (0, 0, 0, 2)))


def _styled(column: Column, cells: Cells) -> Text:
    cell = text(column, cells.get(column.key))
    if column.key == "status":
        return Text(cell, style=STYLES.get(cell, ""))
    return Text(cell, style="bold" if column.key in ("run", "mIoU") else "")
