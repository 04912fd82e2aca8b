"""A W&B workspace of panels for what given runs have logged; none asks for a value that no run has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from pfseg.reporting.runs import Run
from pfseg.reporting.selection import differing
from pfseg.tracking.records import ValRow, numbers, read_records
from pfseg.tracking.wandb_media import CONFUSION

_STATE = ("train/lr", "train/images_per_s", "train/rank_mib", "train/gpu_mib")
_NORM = "train/grad_norm"
_PREDICTIONS = "val/predictions"
_PICTURES = ("val/masks", "val/boundaries", "val/edges", "val/samples")
_CHARTS = {  # by the key of the logged table: W&B's chart, its fields, its title
    "val/IoU_bars_table": ("wandb/bar/v0", {"label": "class", "value": "IoU"}, "IoU by class, %"),
    "val/confusion_table": CONFUSION,
}
_RECIPES = ("experiment", "hparams_search")  # groups that leave no settings under their own name
_SETTINGS = ["optimizer.lr", "seed"]  # the axes where all runs have equal settings


def logged_names(runs: Iterable[Run]) -> set[str]:
    """Keys that runs have given to W&B, as `pfseg.tracking.wandb` derives them from the rows of their records."""
    names: set[str] = set()
    for run in runs:
        for row in read_records(run.folder / "metrics.jsonl"):
            names |= numbers(row, "train/", "val/").keys()
            if row["event"] == "confusion":
                names.add("val/confusion_table")
            if row["event"] == "val":
                val = cast(ValRow, row)
                names |= {"val/classes", "val/IoU_bars_table"} | ({"val/samples"} if val.get("panels") else set())
                samples = val.get("samples", [])
                names |= {"val/masks", "val/boundaries", _PREDICTIONS} if samples else set()
                if "dataset.edge.rule" in run.settings and any("edge" in sample for sample in samples):
                    names.add("val/edges")
    return names | {"best/mIoU"} if "val/mIoU" in names else names


def build_workspace(runs: Sequence[Run], entity: str, project: str) -> ws.Workspace:
    """Lay out the panels of a workspace, which nothing has saved yet; runs that differ only in the seed are grouped.

    The runs' records name the panels, the settings in which they differ the sweep's axes.
    """
    names = logged_names(runs)
    keys = [_config_key(key, runs) for key in differing(runs)]
    settings = [key for key in keys if key] or _SETTINGS
    repeated = "seed" in keys and None not in keys  # otherwise a group would hold what differs in more than the seed
    groups = [ws.Config(key) for key in settings if key != "seed"] if repeated else []
    sections = _sections(names) | {"Sweep": _sweep(settings) if "best/mIoU" in names else []}
    return ws.Workspace(
        entity=entity,
        project=project,
        name="pfseg",
        sections=[
            ws.Section(name=title, panels=panels, is_open=title != "Gradients")
            for title, panels in sections.items()
            if panels
        ],
        runset_settings=ws.RunsetSettings(groupby=groups),
    )


def spec(workspace: ws.Workspace) -> dict[str, Any]:
    """The workspace as W&B stores it, ready for JSON."""
    return dict(workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True))


def _config_key(key: str, runs: Sequence[Run]) -> str | None:
    """A setting as W&B knows it: the choice of a group is its `name`; None for that of a group without one."""
    known = {name for run in runs for name in run.settings}
    if f"{key}.name" in known:
        return f"{key}.name"
    return None if key in _RECIPES or any(name.startswith(f"{key}.") for name in known) else key


def _sections(names: set[str]) -> dict[str, list[Any]]:
    """Panels by section: the mIoU and the whole loss come first in theirs."""

    def some(prefix: str, first: str = "") -> list[str]:
        return sorted((name for name in names if name.startswith(prefix)), key=lambda name: (name != first, name))

    norms, boundaries = some(_NORM), some("val/boundary_")
    others = {"val/classes", _PREDICTIONS, *_CHARTS, *_PICTURES, *boundaries, *_STATE, "train/eta_s", *norms}
    scores = [name for name in some("val/", "val/mIoU") if name.count("/") == 1 and name not in others]
    losses = [name for name in some("train/", "train/loss") if name not in others]
    charts = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": key}},
            chart_name=chart,
            chart_fields=fields,
            chart_strings={"title": title},
        )
        for key, (chart, fields, title) in _CHARTS.items()
        if key in names
    ]
    classes, predictions = (
        [wr.WeavePanelSummaryTable(table_name=name)] * (name in names) for name in ("val/classes", _PREDICTIONS)
    )
    pictures = [key for key in _PICTURES if key in names]
    return {
        "Validation": _lines(scores, "epoch"),
        "IoU by class": charts + classes + _lines(some("val/IoU/"), "epoch"),
        "Images and masks": [
            *(wr.MediaBrowser(title=key.partition("/")[2], media_keys=[key], num_columns=2) for key in pictures),
            *predictions,
        ],
        "Losses": _lines(losses),
        "Learning rate, speed, memory": _lines([key for key in _STATE if key in names]),
        "Gradients": _lines(norms),
        "Boundaries": _lines(boundaries, "epoch"),
    }


def _lines(keys: Iterable[str], x: str = "Step") -> list[wr.LinePlot]:
    return [
        wr.LinePlot(title=key.partition("/")[2], x=x, y=[key], groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for key in keys
    ]


def _sweep(settings: Sequence[str]) -> list[Any]:
    metrics = [*(wr.Config(key) for key in settings), wr.SummaryMetric("best/mIoU")]
    return [
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]),
        wr.ParameterImportancePlot(with_respect_to="best/mIoU"),
        wr.RunComparer(diff_only="split"),
    ]
