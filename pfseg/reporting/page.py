"""The comparison as one HTML page that needs nothing else: no network, no fonts, pictures inside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from pfseg.config.validation import as_typed
from pfseg.data.base import parse_classes
from pfseg.errors import ConfigError
from pfseg.reporting.charts import Curve, chart
from pfseg.reporting.rendering import picture, render
from pfseg.reporting.runs import Run, Values
from pfseg.reporting.selection import compare_groups, group_seeds
from pfseg.reporting.table import LESS_IS_BETTER, Column, RunTable, text

MAX_SHOWN = 8  # runs with curves and pictures: as many colours as can be told apart
_CHIP_SETTINGS = 4
_TITLES = {
    "loss": "training loss",
    "lr": "learning rate",
    "images_per_s": "images per second",
    "rank_mib": "memory of a rank, MiB",
    "gpu_mib": "GPU memory of a rank, MiB",
}
_Shown = tuple[int, Run]  # a run with curves and pictures, all in the colour of this number
_Series = tuple[int, Run, list[tuple[int, Values]]]  # colour, run, and its values by step
_SIDE = {*_TITLES, "eta_s", "step"}  # training values that are no terms of the loss


def to_html(table: RunTable) -> str:
    """Write the page of a table's runs, in its order; the first `MAX_SHOWN` get curves and pictures."""
    shown = list(enumerate(table.runs[:MAX_SHOWN]))
    columns = [column for column in table.columns if column.key != "detail"]
    settings = [column.key for column in columns if column.setting]
    colors = {id(run): color for color, run in shown}
    groups = group_seeds(table.runs)
    names = list(dict.fromkeys(str(run.settings.get("name", run.name)) for run in table.runs))
    curves, more_curves = _curves([(color, run) for color, run in shown if len(run.validations) > 1 or run.train])
    return render(
        "comparison.html.j2",
        title=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        facts=list(_facts(table.runs)),
        columns=columns,
        rows=[(row, colors.get(id(row.run))) for row in table.rows if row.run],
        means=[row for row in table.rows if row.group],
        best={column.key: _best(table, column) for column in columns if column.digits is not None},
        details=[(row.cells["run"], detail) for row in table.rows if (detail := row.cells.get("detail"))],
        text=text,
        groups=groups,
        comparisons=compare_groups(groups),
        chips=[(color, run, _label(run, settings)) for color, run in shown],
        curves=curves,
        more_curves=more_curves,
        class_scores=_class_scores(shown),
        class_colors={name: color for _, run in shown for name, color in _class_colors(run).items()},
        confusions=list(_confusions(shown)),
        samples=list(_samples(shown)),
    )


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


def _label(run: Run, settings: Sequence[str]) -> str:
    """What sets a run apart, where that is little."""
    keys = settings if len(settings) <= _CHIP_SETTINGS else ()
    return ", ".join(f"{key.rpartition('.')[2]} {as_typed(run.settings[key])}" for key in keys if key in run.settings)


def _best(table: RunTable, column: Column) -> float | None:
    values = [v for row in table.rows if row.run and isinstance(v := row.cells.get(column.key), float)]
    if len(values) < 2:
        return None
    return min(values) if column.key in LESS_IS_BETTER else max(values)


def _curves(shown: Sequence[_Shown]) -> tuple[list[Markup], list[Markup]]:
    """Charts of the loss and the mIoU, and of all else that was recorded."""
    train = [(color, run, run.train) for color, run in shown]
    validations = [(color, run, [(point.step, point.scores) for point in run.validations]) for color, run in shown]
    terms = dict.fromkeys(key for *_, rows in train for _, values in rows for key in values if key not in _SIDE)
    scores = dict.fromkeys(key for *_, rows in validations for _, values in rows for key in values if "/" not in key)
    main = [_chart(train, "loss", _TITLES["loss"], loss=True), _chart(validations, "mIoU", "validation mIoU")]
    more = [_chart(train, key, f"training {key}", loss=True) for key in terms]
    more += [_chart(train, key, title) for key, title in _TITLES.items() if key != "loss"]
    more += [_chart(validations, key, f"validation {key}") for key in scores if key != "mIoU"]
    return [figure for figure in main if figure], [figure for figure in more if figure]


def _chart(series: Sequence[_Series], key: str, title: str, loss: bool = False) -> Markup:
    curves = [
        Curve(color, run.name, [(step, value) for step, values in rows if (value := values.get(key)) is not None])
        for color, run, rows in series
    ]
    return chart(title, curves, loss=loss)


def _class_scores(shown: Sequence[_Shown]) -> dict[str, list[tuple[int, Run, float | None]]]:
    """The IoU of each class by run."""
    scores = defaultdict(list)
    for color, run in shown:
        for key, value in run.best.scores.items() if run.best else ():
            if key.startswith("IoU/"):
                scores[key.removeprefix("IoU/")].append((color, run, value))
    return scores


def _class_colors(run: Run) -> dict[str, str]:
    classes = run.settings.get("dataset.classes")
    try:
        return {info.name: info.hex_color for info in parse_classes(classes if isinstance(classes, list) else [])}
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
