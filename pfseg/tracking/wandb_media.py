"""What W&B shows of a validation besides its scores: tables, the confusion matrix and pictures."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from pfseg.data.base import IGNORE
from pfseg.metrics.confusion import confusion_matrix, scores
from pfseg.tracking.records import boundary_scores, class_names, number
from pfseg.tracking.samples import SampleMaps, boundary_picture, edge_picture

_MATRIX = ("Actual", "Predicted", "nPredictions")
CONFUSION = ("wandb/confusion_matrix/v1", {name: name for name in _MATRIX}, "Confusion, pixels")  # chart, fields, title


def sample_pictures(
    samples: Sequence[SampleMaps], names: Sequence[str], edge: Mapping[str, Any] | None
) -> dict[str, list[wandb.Image]]:
    """Pictures of validation samples.

    `val/masks` are images under truth and prediction, with the class `names`; others are `val/boundaries` and, where
    the network finds edges and `edge` gives `rule` and `thickness` of their labels, `val/edges`.
    """
    labels = {**dict(enumerate(names)), IGNORE: "ignored"}
    classes = [{"id": number, "name": name} for number, name in labels.items()]  # for tables
    pictures: defaultdict[str, list[wandb.Image]] = defaultdict(list)
    for sample in samples:
        maps = {"ground_truth": sample.mask, "prediction": sample.pred}
        masks = {key: {"mask_data": data, "class_labels": labels} for key, data in maps.items()}
        picture = wandb.Image(sample.image, masks=masks, caption=sample.name, file_type="jpg", classes=classes)
        pictures["val/masks"].append(picture)
        caption = f"{sample.name}: green found, orange missed, blue wrong"
        pictures["val/boundaries"].append(wandb.Image(boundary_picture(sample), caption=caption))
        if edge and sample.edge is not None:
            picture = edge_picture(sample, edge["rule"], edge["thickness"])
            caption = f"{sample.name}: prediction | label"
            pictures["val/edges"].append(wandb.Image(picture, caption=caption, file_type="jpg"))
    return dict(pictures)


def class_tables(found: Mapping[str, float | None]) -> dict[str, object]:
    """The table of the scores `found` by class, with boundary scores where there are some, and bars of the IoU."""
    names = class_names(found)
    columns = ["IoU", "precision", "recall", "F1", *boundary_scores(found)]
    data = [[name, *(found.get(f"{column}/{name}") for column in columns)] for name in names]
    bars = wandb.Table(columns=["class", "IoU"], data=[[name, found.get(f"IoU/{name}") or 0.0] for name in names])
    return {
        "val/classes": wandb.Table(columns=["class", *columns], data=data),
        "val/IoU_bars": wandb.plot.bar(bars, "class", "IoU", title="IoU by class, %"),
    }


def confusion_chart(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> object:
    """W&B's chart of a confusion matrix, [truth][prediction]."""
    rows = zip(names, confusion, strict=False)
    data = [[truth, *pair] for truth, counts in rows for pair in zip(names, counts, strict=False)]
    chart, fields, title = CONFUSION
    return wandb.plot_table(chart, wandb.Table(columns=list(fields), data=data), fields, {"title": title})


def predictions(
    samples: Sequence[SampleMaps],
    pictures: Sequence[wandb.Image],
    names: Sequence[str],
    exclude: Sequence[str],
    known: Mapping[str, Sequence[float | None]],
) -> wandb.Table:
    """A table of images with mIoU and OA: those of `known`, and the samples with a picture.

    Args:
        samples: the maps of some images.
        pictures: one for each sample.
        names: the classes.
        exclude: classes that the mIoU leaves out.
        known: the scores of all images of an evaluation, by image; those of other samples are worked out.
    """
    rows: dict[str, list[object]] = {name: [*scored, None] for name, scored in known.items()}
    for sample, picture in zip(samples, pictures, strict=True):
        if sample.name not in rows:
            result = scores(confusion_matrix(sample.pred, sample.mask, len(names)), names, exclude)
            rows[sample.name] = [number(result["mIoU"]), number(result["OA"]), None]
        rows[sample.name][-1] = picture
    return wandb.Table(columns=["image", "mIoU", "OA", "prediction"], data=[[name, *row] for name, row in rows.items()])


def read_scores(file: Path) -> dict[str, list[float | None]]:
    """The scores of `images.csv` by image, which an evaluation has; none where there is no such file."""
    if not file.exists():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        _, *lines = csv.reader(stream)
    return {name: [float(text) if text else None for text in texts] for name, *texts in lines}
