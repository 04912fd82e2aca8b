"""Tables, charts and pictures of a validation for Weights & Biases, from rows of the records file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from pfseg.data.base import IGNORE
from pfseg.tracking.records import Row
from pfseg.tracking.samples import MapFiles, SampleMaps, boundary_picture, edge_picture, read_maps

_COLUMNS = ("IoU", "precision", "recall", "F1")


def class_scores(row: Row) -> dict[str, object]:
    """The table of scores by class, boundary scores included where they were measured, and bars of the IoU."""
    names = [key.removeprefix("val/IoU/") for key in row if key.startswith("val/IoU/")]
    boundary = [key[4:] for key in row if key.startswith("val/boundary_") and key.count("/") == 1]
    columns = [*_COLUMNS, *boundary]
    data = [[name, *(row.get(f"val/{column}/{name}") for column in columns)] for name in names]
    bars = wandb.Table(columns=["class", "IoU"], data=[[name, row.get(f"val/IoU/{name}") or 0.0] for name in names])
    return {
        "val/classes": wandb.Table(columns=["class", *columns], data=data),
        "val/IoU_bars": wandb.plot.bar(bars, "class", "IoU", title="IoU by class, %"),
    }


def confusion_chart(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, object]:
    """W&B's chart of a confusion matrix, [truth][prediction] in pixels."""
    data = [[truth, guess, confusion[i][j]] for i, truth in enumerate(names) for j, guess in enumerate(names)]
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    table = wandb.Table(columns=list(fields), data=data)
    title = {"title": "Confusion, pixels"}
    return {"val/confusion": wandb.plot_table("wandb/confusion_matrix/v1", table, fields, title)}


def sample_pictures(
    folder: Path, rows: Sequence[MapFiles], names: Sequence[str], edge: Mapping[str, Any] | None
) -> dict[str, list[wandb.Image]]:
    """Pictures of the validation samples.

    Args:
        folder: the run folder.
        rows: as `pfseg.tracking.samples.save_maps` returned them.
        names: of the classes.
        edge: `rule` and `thickness` of the edge labels; None shows no edges.

    Returns:
        `val/masks`: images under truth and prediction; `val/boundaries`; `val/edges` where the network finds edges.
    """
    samples = read_maps(folder, rows)
    labels = {**dict(enumerate(names)), IGNORE: "ignored"}
    pictures = {
        "val/masks": [_overlay(sample, labels) for sample in samples],
        "val/boundaries": [
            wandb.Image(boundary_picture(sample), caption=f"{sample.name}: green found, orange missed, blue wrong")
            for sample in samples
        ],
        "val/edges": [
            wandb.Image(
                edge_picture(sample, edge["rule"], edge["thickness"]),
                caption=f"{sample.name}: prediction | label",
                file_type="jpg",
            )
            for sample in samples
            if edge and sample.edge is not None
        ],
    }
    return {key: images for key, images in pictures.items() if images}


def _overlay(sample: SampleMaps, labels: dict[int, str]) -> wandb.Image:
    maps = {"ground_truth": sample.mask, "prediction": sample.pred}
    masks = {key: {"mask_data": data, "class_labels": labels} for key, data in maps.items()}
    return wandb.Image(sample.image, masks=masks, caption=sample.name, file_type="jpg")
