"""The comparison as one HTML page that needs nothing else: no network, no fonts, pictures inside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pfseg.data.base import parse_classes
from pfseg.errors import ConfigError
from pfseg.reporting.charts import Curve, chart
from pfseg.reporting.rendering import picture, render
from pfseg.reporting.runs import Run
from pfseg.reporting.selection import compare_groups, group_seeds
from pfseg.reporting.statistics import Spread
from pfseg.reporting.table import Column, RunRow, RunTable, text
from pfseg.tracking.terminal import as_typed

MAX_SHOWN = 8  # runs with curves and pictures: as many colours as can be told apart
_CHIP_SETTINGS = 4
_TITLES = {
    "loss": "training loss",
    "lr": "learning rate",
    "images_per_s": "images per second",
    "rank_mib": "memory of a rank, MiB",
    "gpu_mib": "GPU memory of a rank, MiB",
}
_SIDE = {*_TITLES, "eta_s", "step"}  # training values that are no terms of the loss


class _Shown(NamedTuple):
    """A run with curves and pictures, all in the colour of this number."""

    color: int
    run: Run


def to_html(table: RunTable) -> str:
    """Write the page.

    Args:
        table: runs in the order in which they are shown; the first `MAX_SHOWN` get curves and pictures.

    Returns:
        A whole HTML document.
    """
    shown = [_Shown(color, run) for color, run in enumerate(table.runs[:MAX_SHOWN])]
    columns = [column for column in table.columns if column.key != "detail"]
    colors = {id(run): color for color, run in shown}
    groups = group_seeds(table.runs)
    curves, more_curves = _curves([part for part in shown if len(part.run.validations) > 1 or part.run.train])
    return render(
        "comparison.html.j2",
        title=_title(table.runs),
        facts=list(_facts(table.runs)),
        columns=columns,
        rows=[(row, colors.get(id(row.run))) for row in table.rows if row.run],
        means=[row for row in table.rows if row.group],
        best={column.key: _best(table, column) for column in columns if column.digits is not None},
        details=[(row.cells["run"], detail) for row in table.rows if (detail := row.cells.get("detail"))],
        text=text,
        sort_value=_sort_value,
        groups=groups,
        comparisons=compare_groups(groups),
        chips=[(*part, _apart(part.run, table.columns)) for part in shown],
        curves=curves,
        more_curves=more_curves,
        class_scores=_class_scores(shown),
        class_colors={name: color for _, run in shown for name, color in _class_colors(run).items()},
        confusions=list(_confusions(shown)),
        samples=list(_samples(shown)),
    )


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.settings.get("name", run.name)) for run in runs))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(runs: Sequence[Run]) -> Iterator[str]:
    counts = Counter(run.status for run in runs)
    yield f"{len(runs)} run{'s' * (len(runs) > 1)}: " + ", ".join(f"{n} {status}" for status, n in counts.items())
    if len(runs) > MAX_SHOWN:
        yield (
            f"curves, bars and pictures show the first {MAX_SHOWN} runs in the order of the table and "
            f"leave out {len(runs) - MAX_SHOWN}"
        )
    if lines := sum(run.unreadable for run in runs):
        yield f"{lines} unreadable line{'s' * (lines > 1)} left out"


def _best(table: RunTable, column: Column) -> float | None:
    values = [v for row in table.rows if row.run and isinstance(v := row.cells.get(column.key), float)]
    if len(values) < 2:
        return None
    return min(values) if column.key == "loss" else max(values)


def _sort_value(row: RunRow, column: Column) -> str:
    """What the page's script sorts a cell by; cells without a value stay at the end."""
    value = row.run.steps if row.run and column.key == "steps" else row.cells.get(column.key)
    return "" if value is None or isinstance(value, Spread) else str(value)


def _apart(run: Run, columns: Sequence[Column]) -> str:
    """What sets a run apart, where that is little."""
    settings = [column.key for column in columns if column.setting]
    if len(settings) > _CHIP_SETTINGS:
        return ""
    return ", ".join(f"{k.rpartition('.')[2]} {as_typed(run.settings[k])}" for k in settings if k in run.settings)


def _curves(shown: Sequence[_Shown]) -> tuple[list[Markup], list[Markup]]:
    """Charts of the loss and the mIoU, and of all else that was recorded."""
    terms = dict.fromkeys(key for _, run in shown for row in run.train for key in row.values if key not in _SIDE)
    scores = dict.fromkeys(k for _, run in shown for v in run.validations for k in v.scores if "/" not in k)
    main = [_training(shown, "loss"), _validation(shown, "mIoU")]
    more = [_training(shown, key) for key in (*terms, *_TITLES) if key != "loss"]
    more += [_validation(shown, key) for key in scores if key != "mIoU"]
    return [figure for figure in main if figure], [figure for figure in more if figure]


def _training(shown: Sequence[_Shown], key: str) -> Markup:
    is_loss = key == "loss" or key not in _TITLES
    curves = [
        Curve(color, run.name, [(row.step, value) for row in run.train if (value := row.values.get(key)) is not None])
        for color, run in shown
    ]
    return chart(_TITLES.get(key, f"training {key}"), curves, smoothed=is_loss, may_be_log=is_loss)


def _validation(shown: Sequence[_Shown], key: str) -> Markup:
    curves = [
        Curve(color, run.name, [(v.step, value) for v in run.validations if (value := v.scores.get(key)) is not None])
        for color, run in shown
    ]
    return chart(f"validation {key}", curves)


def _class_scores(shown: Sequence[_Shown]) -> dict[str, list[tuple[int, Run, float | None]]]:
    """The IoU of each class by run."""
    scores = defaultdict(list)
    for color, run in shown:
        for key, value in run.best.scores.items() if run.best else ():
            if key.startswith("IoU/"):
                scores[key.removeprefix("IoU/")].append((color, run, value))
    return scores


def _class_colors(run: Run) -> dict[str, str]:
    try:
        return {info.name: info.hex_color for info in parse_classes(run.settings.get("dataset.classes") or [])}
    except (ConfigError, AttributeError, TypeError):  # none, or a damaged file
        return {}


def _confusions(shown: Sequence[_Shown]) -> Iterator[tuple[int, Run, int, list[str], list[list[int]]]]:
    """Step, class names and matrix of each run's best validation, or of the last one that has a matrix."""
    for color, run in shown:
        candidates = [*run.validations, *([run.best] if run.best else [])]
        validation = next((v for v in reversed(candidates) if v.confusion), None)
        if validation and (matrix := validation.confusion):
            names = [key.removeprefix("IoU/") for key in validation.scores if key.startswith("IoU/")]
            names = names if len(names) == len(matrix) else [str(i) for i in range(len(matrix))]
            yield color, run, validation.step, names, matrix


def _samples(shown: Sequence[_Shown]) -> Iterator[tuple[int, Run, int, str]]:
    """Step and picture of each run's last validation with one."""
    for color, run in shown:
        validation = next((v for v in reversed(run.validations) if v.panels), None)
        if validation and validation.panels and (source := picture(validation.panels)):
            yield color, run, validation.step, source
