"""The table of runs, and its forms: terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pfseg.config.validation import unknown_key
from pfseg.errors import ConfigError
from pfseg.reporting.reading import number
from pfseg.reporting.runs import Run
from pfseg.reporting.selection import SeedGroup, differing, group_seeds
from pfseg.reporting.statistics import Spread
from pfseg.tracking import terminal

Cell = str | float | Spread | None
STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "lost": "magenta"}
_WIDE = 100  # columns of a terminal that shows a row for each run
_DIGITS = {"kappa": 4, "loss": 4}
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


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

    cells: dict[str, Cell]
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


def build_table(runs: Sequence[Run], sort: str | None = None) -> RunTable:
    """Put the runs into a table.

    Args:
        runs: in any order.
        sort: `key`, `key:asc` or `key:desc`; key is a column or any setting. Default: the best mIoU first.

    Raises:
        ConfigError: no such column or setting, or another direction.
    """
    settings = differing(runs)
    names = list(dict.fromkeys(name for run in runs if run.best for name in run.best.scores if "/" not in name))
    columns = [Column("run", "run"), Column("status", "status")]
    columns += [Column("job", "job")] * (len({run.job for run in runs}) > 1)
    columns += [Column("mIoU", "best mIoU", 2, right=True), Column("last", "last mIoU", 2, right=True)]
    columns += [Column(key, key, setting=True, right=_numeric(key, runs)) for key in settings]
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
    if console.width < _WIDE:
        _print_stacked(table, console)
        return
    settings = [column for column in table.columns if column.setting]
    shown = [column for column in table.columns if not column.setting and column.key != "detail"]
    shown = _fitting(table, shown, settings, console.width)
    heads = [column.title for column in shown]
    if settings:
        heads.insert(1, "settings")  # behind the run
    grid = terminal.table(*heads, numbers={column.title for column in shown if column.right})
    if settings:
        grid.columns[1].ratio = 1
    for row in table.rows:
        cells: list[Text] = []
        for column in shown:
            cells.append(_styled(column, row))
            if column.key == "run" and settings:
                cells.append(Text(_settings(row, settings)))
        grid.add_row(*cells, end_section=_last_run(table, row))
    console.print(grid)
    for row in table.rows:
        if row.cells.get("detail"):
            console.print(Text.assemble((f"{row.cells['run']}: ", "bold"), str(row.cells["detail"])), soft_wrap=True)


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
    return csv_text(_heads(table), rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file; None and NaN are empty cells."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if cell is None or cell != cell else cell for cell in row] for row in rows])
    return file.getvalue()


def to_markdown(table: RunTable) -> str:
    """A table of GitHub's Markdown."""
    lines = [[_markdown(cell) for cell in row] for row in (_heads(table), *(_texts(table, row) for row in table.rows))]
    lines.insert(1, ["---:" if column.right else "---" for column in table.columns])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(table: RunTable) -> str:
    r"""A `tabular` for `\usepackage{booktabs}`."""

    def line(cells: Sequence[str]) -> str:
        return f"    {' & '.join(map(_latex, cells))} \\\\\n"

    head = line(_heads(table))
    runs = [line(_texts(table, row)) for row in table.rows if row.group is None]
    means = [line(_texts(table, row)) for row in table.rows if row.group]
    layout = "".join("r" if column.right else "l" for column in table.columns)
    body = "".join(runs) + ("    \\midrule\n" + "".join(means) if means else "")
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{layout}}}\n    \\toprule\n{head}    \\midrule\n{body}"
        "    \\bottomrule\n\\end{tabular}\n"
    )


def _heads(table: RunTable) -> list[str]:
    return [column.title for column in table.columns]


def _texts(table: RunTable, row: RunRow) -> list[str]:
    return [text(column, row.cells.get(column.key)) for column in table.columns]


def _numeric(key: str, runs: Sequence[Run]) -> bool:
    return all(number(run.settings[key]) is not None for run in runs if run.settings.get(key) is not None)


def _cells(run: Run, settings: Sequence[str]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {key: terminal.as_typed(run.settings[key]) for key in settings if key in run.settings}
    scores = dict(run.best.scores) if run.best else {}
    faults = f"{run.unreadable} unreadable line{'s' * (run.unreadable > 1)} left out" if run.unreadable else ""
    steps = f"{run.steps}/{run.total}" if run.total and run.steps < run.total else run.steps
    return {
        **{key: value for key, value in scores.items() if "/" not in key},
        **cells,
        "run": run.name,
        "status": run.status,
        "job": run.job,
        "mIoU": run.best.miou if run.best else None,
        "last": run.last.miou if run.last else None,
        "steps": steps,
        "time": run.seconds,
        "detail": "; ".join(part for part in (run.detail, faults) if part),
    }


def _means(group: SeedGroup, columns: Sequence[Column]) -> dict[str, Cell]:
    cells: dict[str, Cell] = {key: terminal.as_typed(value) for key, value in group.settings.items()}
    cells |= {"run": f"mean ± std, {len(group.runs)} seeds", "job": group.runs[0].job}
    members = [_cells(run, ()) for run in group.runs]
    for column in columns:
        if column.digits is not None:
            values = [cell if isinstance(cell := member.get(column.key), float) else None for member in members]
            cells[column.key] = group.spread(values)
    return cells


def _sorted(rows: list[RunRow], sort: str | None) -> list[RunRow]:
    key, _, direction = (sort or "mIoU:desc").partition(":")
    if direction not in ("", "asc", "desc"):
        raise ConfigError(f"sort={sort}: expected key, key:asc or key:desc, got the direction {direction!r}")
    values = {id(row): _sort_value(row, key) for row in rows}
    if sort and all(value is None for value in values.values()):
        known = {name for row in rows if row.run for name in (*row.cells, *row.run.settings)}
        if key not in known:
            raise unknown_key(
                key, {name for name in known if "." not in name or name.startswith(key.partition(".")[0])}
            )
    known_rows = [row for row in rows if values[id(row)] is not None]
    numeric = all(isinstance(values[id(row)], float) for row in known_rows)

    def order(row: RunRow) -> tuple[float, str]:
        value = values[id(row)]
        return (value, "") if numeric and isinstance(value, float) else (0.0, str(value))

    unknown_rows = [row for row in rows if values[id(row)] is None]
    return sorted(known_rows, key=order, reverse=direction == "desc") + unknown_rows


def _sort_value(row: RunRow, key: str) -> float | str | None:
    assert row.run is not None, "means are not sorted"
    value: object = row.run.steps if key == "steps" else row.cells.get(key, row.run.settings.get(key))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return str(value)
    return None if value is None else terminal.as_typed(value)


def _fitting(table: RunTable, columns: list[Column], settings: list[Column], width: int) -> list[Column]:
    """Leave out the further scores, the last ones first, until the rest fits."""

    def needed(column: Column) -> int:
        return 2 + max(len(column.title), *(len(text(column, row.cells.get(column.key))) for row in table.rows))

    room = width - (max(len(_settings(row, settings)) for row in table.rows) + 2 if settings else 0)
    room = max(room, width * 2 // 3)
    shown = list(columns)
    always = {"run", "status", "job", "mIoU", "last", "steps", "time"}
    for column in reversed(columns):
        if column.key not in always and sum(map(needed, shown)) > room:
            shown.remove(column)
    return shown


def _print_stacked(table: RunTable, console: Console) -> None:
    settings = [column for column in table.columns if column.setting]
    plain = [c for c in table.columns if not c.setting and c.key not in ("run", "status", "detail")]
    for row in table.rows:
        status = str(row.cells.get("status") or "")
        console.print(Text.assemble((str(row.cells["run"]), "bold"), "  ", (status, STYLES.get(status, ""))))
        facts = [f"{c.title} {text(c, cell)}" for c in plain if (cell := row.cells.get(c.key)) is not None]
        for line in (_settings(row, settings), "   ".join(facts), str(row.cells.get("detail") or "")):
            if line:
                console.print(Padding(Text(line), (0, 0, 0, 2)))


def _settings(row: RunRow, settings: Sequence[Column]) -> str:
    return " ".join(f"{c.key}={row.cells[c.key]}" for c in settings if row.cells.get(c.key) is not None)


def _styled(column: Column, row: RunRow) -> Text:
    cell = text(column, row.cells.get(column.key))
    if column.key == "status":
        return Text(cell, style=STYLES.get(cell, ""))
    return Text(cell, style="bold" if column.key in ("run", "mIoU") else "")


def _last_run(table: RunTable, row: RunRow) -> bool:
    return row.run is not None and row is [r for r in table.rows if r.run][-1]


def _markdown(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("_", "\\_").replace("*", "\\*").replace("<", "&lt;")


def _latex(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in value)
