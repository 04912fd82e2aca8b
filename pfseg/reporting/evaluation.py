"""One evaluation as an HTML page that needs nothing else: scores, classes, confusion, pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pfseg.data.base import ClassInfo
from pfseg.reporting.page import confusion_table, document, picture, section

_DIGITS = {"kappa": 4}
_CLASS_COLUMNS = ("IoU", "precision", "recall", "F1")
_MEANS = ("mIoU", "mF1", "OA", "mAcc", "fwIoU", "kappa")
_PICTURES = {"worst": "the worst by mIoU", "best": "the best"}
_FLIPS = {"h": "mirrored left-right", "v": "mirrored top-bottom", "hv": "mirrored both ways", "d4": "8 symmetries"}

Results = Mapping[str, Any]


def to_html(folder: Path, results: Results, classes: Sequence[ClassInfo]) -> str:
    """Write the page.

    Args:
        folder: of the evaluation, with its pictures.
        results: what `results.json` holds; None stands for a score without a value.
        classes: the class table.
    """
    what = {"patches": "images", "scenes": "scenes", "both": "patches"}[results["score"]]
    parts = {what: (folder, results)}
    if "scenes" in results:
        parts["scenes"] = (folder / "scenes", results["scenes"])
    sections = [_head(results, what), section("Scores", _means(parts), _note(results))]
    for name, (place, part) in parts.items():
        of = f" of {name}" if len(parts) > 1 else ""
        excluded = set(results["exclude"])
        note = "In percent; classes in grey are left out of the means." if excluded else "In percent."
        sections += [
            section(f"Classes{of}", _classes(part, classes, excluded), note),
            section(f"Boundaries{of}", _boundaries(part, classes, excluded), "In percent."),
            section(
                f"Confusion{of}",
                f"<figure>{confusion_table(part['classes'], part['confusion'])}</figure>",
                "Rows are the truth, columns the prediction; percent of the row.",
            ),
        ]
        sections.append(section(name.capitalize(), _pictures(place), "A click enlarges a picture."))
    return document(_title(results), sections)


def _title(results: Results) -> str:
    return f"mIoU {_number(results['mIoU'], 2)} on {results['split']}"


def _head(results: Results, what: str) -> str:
    facts = [
        f"{results['checkpoint']}, step {results['step']}",
        f"{results['images']} {what}",
        _views(results),
        f"made {time.strftime('%Y-%m-%d %H:%M %Z')}",
    ]
    return f"<header><h1>{escape(_title(results))}</h1><p>{escape('; '.join(facts))}.</p></header>\n"


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


def _note(results: Results) -> str:
    if not results["exclude"]:
        return ""
    names = ", ".join(results["exclude"])
    return escape(f"Means over classes leave out: {names}. OA, fwIoU and kappa count all pixels.")


def _means(parts: Mapping[str, tuple[Path, Results]]) -> str:
    heads = "".join(f"<th class='right'>{name}</th>" for name in _MEANS)
    digits = [_DIGITS.get(name, 2) for name in _MEANS]
    rows = "".join(
        f"<tr><td>{what}</td>{_cells([part[name] for name in _MEANS], digits)}</tr>"
        for what, (_, part) in parts.items()
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _classes(results: Results, classes: Sequence[ClassInfo], excluded: set[str]) -> str:
    rows = [[results[f"{column}/{info.name}"] for column in _CLASS_COLUMNS] for info in classes]
    return _class_table(_CLASS_COLUMNS, rows, classes, excluded)


def _boundaries(results: Results, classes: Sequence[ClassInfo], excluded: set[str]) -> str:
    keys = [key for key in results if key.startswith("boundary_") and "/" not in key]
    rows = [[results[f"{key}/{info.name}"] for key in keys] for info in classes]
    return _class_table([key.removeprefix("boundary_") for key in keys], rows, classes, excluded) if keys else ""


def _class_table(
    columns: Sequence[str], values: Sequence[Sequence[float | None]], classes: Sequence[ClassInfo], excluded: set[str]
) -> str:
    """A table of the classes that a click on a column's head sorts, and the means of those that aren't excluded."""
    heads = "".join(
        f"<th{' class=right' if right else ''}><button type='button'>{escape(name)}</button></th>"
        for right, name in enumerate(("class", *columns))
    )
    rows = ""
    for info, row in zip(classes, values, strict=True):
        faint = ' class="excluded"' if info.name in excluded else ""
        swatch = f'<span class="swatch" style="background:rgb{tuple(info.color)}"></span>'
        name = f'<td data-v="{escape(info.name)}">{swatch}{escape(info.name)}</td>'
        rows += f"<tr{faint}>{name}{_cells(row, [2] * len(row))}</tr>"
    kept = [row for info, row in zip(classes, values, strict=True) if info.name not in excluded]
    known = [[value for value in column if value is not None] for column in zip(*kept, strict=True)]
    means = [sum(column) / len(column) if column else None for column in known]
    foot = f"<tr><td>mean</td>{_cells(means, [2] * len(means))}</tr>"
    return (
        f'<div class="scroll"><table class="runs"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
    )


def _cells(values: Sequence[float | None], digits: Sequence[int]) -> str:
    return "".join(
        f'<td class="right" data-v="{"" if value is None else value}">{_number(value, count)}</td>'
        for value, count in zip(values, digits, strict=True)
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pictures(folder: Path) -> str:
    figures = "".join(
        f'<figure><figcaption>{title}</figcaption><img src="{source}" alt="{title}" tabindex="0"></figure>'
        for file, title in _PICTURES.items()
        if (source := picture(folder / f"{file}.png")) is not None
    )
    return f'<div class="cards samples">{figures}</div>' if figures else ""
