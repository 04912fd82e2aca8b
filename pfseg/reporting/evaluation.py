"""One evaluation as an HTML page that needs nothing else: scores, classes, confusion, pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfseg.data.base import ClassInfo
from pfseg.reporting.rendering import picture, render
from pfseg.tracking.terminal import number

_CLASS_COLUMNS = ("IoU", "precision", "recall", "F1")
_MEANS = ("mIoU", "mF1", "OA", "mAcc", "fwIoU", "kappa")
_PICTURES = {"worst": "the worst by mIoU", "best": "the best", "reliability": "confidence and accuracy"}
_FLIPS = {"h": "mirrored left-right", "v": "mirrored top-bottom", "hv": "mirrored both ways", "d4": "8 symmetries"}

Results = Mapping[str, Any]  # of results.json


def to_html(folder: Path, results: Results, classes: Sequence[ClassInfo]) -> str:
    """Write the page of the evaluation in `folder`, which has its pictures; None is a score without a value."""
    name = {"patches": "images", "scenes": "scenes", "both": "patches"}[results["score"]]
    parts = [_part(name, folder, results, classes, results["exclude"])]
    if "scenes" in results:
        parts += [_part("scenes", folder / "scenes", results["scenes"], classes, results["exclude"])]
    facts = [f"{results['checkpoint']}, step {results['step']}", f"{results['images']} {name}", _views(results)]
    values = {"facts": facts, "parts": parts, "exclude": results["exclude"], "means": list(_MEANS)}
    return render("evaluation.html.j2", title=f"mIoU {number(results['mIoU'])} on {results['split']}", **values)


def _part(
    name: str, folder: Path, results: Results, classes: Sequence[ClassInfo], exclude: Collection[str]
) -> dict[str, object]:
    """What the page says of patches, or of whole scenes."""
    boundaries = [key for key in results if key.startswith("boundary_") and "/" not in key]
    pictures = [(title, picture(folder / f"{file}.png")) for file, title in _PICTURES.items()]
    return {
        "name": name,
        "results": results,
        "classes": _class_scores(results, _CLASS_COLUMNS, classes, exclude),
        "boundaries": _class_scores(results, boundaries, classes, exclude),
        "pictures": [(title, source) for title, source in pictures if source],
    }


def _class_scores(
    results: Results, keys: Sequence[str], classes: Sequence[ClassInfo], exclude: Collection[str]
) -> dict[str, object]:
    """Scores by class: columns, a row of values for each class, and means over the classes that aren't excluded."""
    rows = [(info, [results[f"{key}/{info.name}"] for key in keys]) for info in classes]
    kept = [values for info, values in rows if info.name not in exclude]
    known = [[value for value in column if value is not None] for column in zip(*kept, strict=True)]
    means = [sum(column) / len(column) if column else None for column in known]
    return {"columns": [key.removeprefix("boundary_") for key in keys], "rows": rows, "means": means}


def _views(results: Results) -> str:
    """How images were predicted, in words."""
    size = results["eval_size"]
    words = ["whole" if size == "whole" else f"windows of {size[0]}x{size[1]} px"]
    if results["contrast"] != "own":
        words.append(f"contrast {results['contrast']:g}")
    if results["overlap"]:
        words.append(f"overlap {results['overlap']:g}")
    if results["scales"] != [1]:
        words.append("scales " + ", ".join(f"{scale:g}" for scale in results["scales"]))
    if results["flips"] != "none":
        words.append(_FLIPS[results["flips"]])
    return ", ".join(words)
