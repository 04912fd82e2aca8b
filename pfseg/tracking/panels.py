"""Pictures of samples: image | ground truth | prediction in class colours, with a legend; and of confusion matrices."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pfseg.files import write_atomic

if TYPE_CHECKING:
    from pfseg.data.base import ClassInfo

_HEADS = ("image", "ground truth", "prediction")
_PAPER, _INK, _FAINT, _LINE = (255, 255, 255), (33, 37, 41), (120, 126, 133), (206, 210, 214)  # RGB
_HEAT, _NOTHING = (11, 98, 176), (238, 240, 242)  # a whole row in one cell; a row without pixels
_MARGIN, _GAP = 16, 10
_CELL = 44  # side of a cell of a confusion matrix
_SHARPER = 4  # text is drawn so many times larger and scaled down: the strokes of OpenCV's fonts come out smooth


def save_panels(
    path: Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
    classes: Sequence[ClassInfo],
    *,
    ignore_index: int = 255,
    height: int = 320,
) -> None:
    """Write one picture with a row for each sample.

    Args:
        path: the PNG file; written whole or not at all.
        rows: image (H, W, 3) uint8 RGB; ground truth (H, W) and prediction (H, W), integers in [0, K), the ground
            truth also `ignore_index`, which is hatched; name, shown above the row with its share of right pixels.
        classes: the class table, K rows.
        ignore_index: label without a class.
        height: limit for a row in pixels; the width of a column is limited to 1.5 times this. Larger images are
            scaled down, images below half of it up by a whole factor.

    Raises:
        WriteError: the file can't be written.
    """
    palette = np.array([info.color for info in classes], np.uint8)
    sizes = [_fit(truth.shape[0], truth.shape[1], height) for _, truth, _, _ in rows]
    column = max(120, *(size[0] for size in sizes))  # a caption needs some width
    width = 3 * column + 2 * _GAP
    parts = [_heads(_HEADS, column, width)]
    for (image, truth, pred, name), size in zip(rows, sizes, strict=True):
        strip = _strip(_cells(image, (truth, pred), palette, size), column, width)
        parts += [_caption(name, _right(truth, pred, ignore_index), width), strip, _paper(_GAP, width)]
    ignored = any((truth == ignore_index).any() for _, truth, _, _ in rows)
    _save_page(path, [*parts, _legend(classes, ignored, width)], width)


def save_samples(
    path: Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
    classes: Sequence[ClassInfo],
    *,
    ignore_index: int = 255,
    height: int = 280,
) -> None:
    """Write one picture of training samples, a row for each.

    Args:
        path: the PNG file; written whole or not at all.
        rows: image (H, W, 3) uint8 RGB; mask (H, W), integers in [0, K) or `ignore_index`, laid over the image in
            class colours, hatched where ignored; edge (H, W), 0 or 1, in white over the darkened image; name, shown
            above the row with its largest classes.
        classes: the class table, K rows.
        ignore_index: label without a class.
        height: see `save_panels`.

    Raises:
        WriteError: the file can't be written.
    """
    palette = np.array([info.color for info in classes], np.uint8)
    sizes = [_fit(mask.shape[0], mask.shape[1], height) for _, mask, _, _ in rows]
    column = max(120, *(size[0] for size in sizes))
    width = 3 * column + 2 * _GAP
    parts = [_heads(("image", "mask", "edges"), column, width)]
    for (image, mask, edge, name), size in zip(rows, sizes, strict=True):
        plain, labels = _cells(image, (mask,), palette, size)
        over = cv2.addWeighted(labels, 0.6, plain, 0.4, 0)
        line = cv2.resize(edge.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
        edges = (plain * 0.35 * (1 - line) + 255 * line).astype(np.uint8)
        parts += [_caption(name, _largest(mask, classes, ignore_index), width)]
        parts += [_strip([plain, _framed(over), _framed(edges)], column, width), _paper(_GAP, width)]
    ignored = any((mask == ignore_index).any() for _, mask, _, _ in rows)
    _save_page(path, [*parts, _legend(classes, ignored, width)], width)


def save_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a picture of a confusion matrix, each row in percent of its class's pixels.

    Args:
        path: the PNG file; written whole or not at all.
        confusion: (K, K), [truth, prediction].
        class_names: K names.

    Raises:
        WriteError: the file can't be written.
    """
    names = [_shorten(name, 200, 14) for name in class_names]
    label = max(_text_width(name, 14) for name in names) + 12
    count = len(names)
    grid = _paper(label + count * _CELL, label + count * _CELL)
    totals = confusion.sum(axis=1)
    for row, name in enumerate(names):
        top = label + row * _CELL
        _write(grid, name, (label - 10 - _text_width(name, 14), top + _CELL // 2 - 8), size=14)
        upright = _paper(_CELL, label)
        _write(upright, name, (8, _CELL // 2 - 8), size=14)
        grid[:label, top : top + _CELL] = np.rot90(upright)
        for column in range(count):
            left = label + column * _CELL
            cell = grid[top : top + _CELL - 1, left : left + _CELL - 1]
            _fill_cell(cell, confusion[row, column] / totals[row] if totals[row] else None)
    note = "rows: truth, columns: prediction; percent of the row"
    width = max(grid.shape[1], _text_width(note, 13))
    page = _paper(grid.shape[0], width)
    page[:, : grid.shape[1]] = grid
    foot = _paper(32, width)
    _write(foot, note, (0, 10), size=13, color=_FAINT)
    _save_page(path, [page, foot], width)


def _fill_cell(cell: np.ndarray, share: float | None) -> None:
    """Colour a cell by a share of 0..1, and write it in percent; None for a class without pixels."""
    cell[:] = _NOTHING if share is None else np.round((1 - share) * np.array(_PAPER) + share * np.array(_HEAT))
    if share is not None and round(100 * share):
        text = f"{100 * share:.0f}"
        place = ((cell.shape[1] - _text_width(text, 14)) // 2, cell.shape[0] // 2 - 8)
        _write(cell, text, place, size=14, color=_PAPER if share > 0.5 else _INK)


def _largest(mask: np.ndarray, classes: Sequence[ClassInfo], ignore_index: int) -> str:
    """The three classes that cover most, such as `road 61 %, tree 30 %`."""
    labels, counts = np.unique(mask[mask != ignore_index], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    return ", ".join(f"{classes[labels[i]].name} {100 * counts[i] / mask.size:.2g} %" for i in order) or "ignored"


def _save_page(path: Path, parts: Sequence[np.ndarray], width: int) -> None:
    page = np.vstack(parts)
    framed = np.full((page.shape[0] + 2 * _MARGIN, width + 2 * _MARGIN, 3), _PAPER, np.uint8)
    framed[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = page
    done, content = cv2.imencode(".png", framed[..., ::-1])
    assert done, "OpenCV encodes any (H, W, 3) uint8 array"
    write_atomic(path, content.tobytes())


def _heads(texts: Sequence[str], column: int, width: int) -> np.ndarray:
    head = _paper(32, width)
    for position, text in enumerate(texts):
        _write(head, text, (position * (column + _GAP), 4), size=17, bold=True)
    return head


def _strip(cells: Sequence[np.ndarray], column: int, width: int) -> np.ndarray:
    strip = _paper(cells[0].shape[0], width)
    for position, cell in enumerate(cells):
        left = position * (column + _GAP)
        strip[:, left : left + cell.shape[1]] = cell
    return strip


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _right(truth: np.ndarray, pred: np.ndarray, ignore_index: int) -> str:
    counted = truth != ignore_index
    return f"{100 * (pred == truth)[counted].mean():.1f} % of pixels right" if counted.any() else "no labelled pixel"


def _caption(name: str, note: str, width: int) -> np.ndarray:
    note_width = _text_width(note, 13)
    strip = _paper(20, width)
    _write(strip, _shorten(name, width - note_width - 24, 13), (0, 2), size=13, color=_FAINT)
    _write(strip, note, (width - note_width, 2), size=13, color=_FAINT)
    return strip


def _cells(
    image: np.ndarray, masks: Sequence[np.ndarray], palette: np.ndarray, size: tuple[int, int]
) -> list[np.ndarray]:
    cells = [_resize(image, size)]
    for labels in masks:
        known = labels < len(palette)
        cell = _resize(palette[np.where(known, labels, 0)], size)
        shown = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        cells.append(np.where(shown[..., None], cell, _hatch(size)))
    return [_framed(cell) for cell in cells]


def _framed(cell: np.ndarray) -> np.ndarray:
    cell[[0, -1]] = cell[:, [0, -1]] = _LINE
    return cell


def _fit(rows: int, columns: int, height: int) -> tuple[int, int]:
    """Size (width, height) of a cell: within the limits, small images enlarged by a whole factor."""
    scale = min(height / rows, 1.5 * height / columns)
    scale = float(int(scale)) if scale >= 2 else min(scale, 1.0)
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    method = cv2.INTER_NEAREST if size[0] > picture.shape[1] else cv2.INTER_AREA
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=method)


def _hatch(size: tuple[int, int]) -> np.ndarray:
    """Return grey stripes, which no class colour looks like."""
    y, x = np.mgrid[: size[1], : size[0]]
    return np.where(((x + y) % 12 < 6)[..., None], np.uint8(72), np.uint8(104)).repeat(3, axis=2)


def _legend(classes: Sequence[ClassInfo], ignored: bool, width: int) -> np.ndarray:
    names = [_shorten(info.name, width - 30, 14) for info in classes] + ["ignored"] * ignored
    places, x, y = [], 0, 0
    for name in names:
        needed = 24 + _text_width(name, 14)
        if x > 0 and x + needed > width:
            x, y = 0, y + 24
        places.append((x, y))
        x += needed + 22
    strip = _paper(y + 24, width)
    for index, (name, (x, y)) in enumerate(zip(names, places, strict=True)):
        swatch = _hatch((16, 16)) if index == len(classes) else np.full((16, 16, 3), classes[index].color, np.uint8)
        swatch[[0, -1]] = swatch[:, [0, -1]] = _LINE
        strip[y + 4 : y + 20, x : x + 16] = swatch
        _write(strip, name, (x + 23, y + 3), size=14)
    return strip


def _font(size: int, bold: bool) -> tuple[float, int]:
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, round(size * _SHARPER * 0.74), 1)
    return scale, _SHARPER * size // (8 if bold else 11)


def _ascii(text: str) -> str:
    """Spell accented letters without their accents: OpenCV's fonts know ASCII only."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() or "?"


def _text_width(text: str, size: int, bold: bool = False) -> int:
    scale, thickness = _font(size, bold)
    return -(-cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0] // _SHARPER)


def _shorten(text: str, width: int, size: int) -> str:
    """Cut the beginning of a text that is too long; of a path its end tells more."""
    if _text_width(text, size) <= width:
        return text
    while len(text) > 4 and _text_width("..." + text, size) > width:
        text = text[1:]
    return "..." + text


def _write(
    canvas: np.ndarray,
    text: str,
    place: tuple[int, int],
    *,
    size: int,
    color: tuple[int, int, int] = _INK,
    bold: bool = False,
) -> None:
    """Blend a text into `canvas` in place; `place` is (x, y) of its top left corner."""
    scale, thickness = _font(size, bold)
    x, y = place
    wide = min(_text_width(text, size, bold) + 2, canvas.shape[1] - x)
    tall = min(round(size * 1.3), canvas.shape[0] - y)
    if wide <= 0 or tall <= 0:
        return
    large = np.zeros((tall * _SHARPER, wide * _SHARPER), np.uint8)
    origin = (_SHARPER // 2, round(size * _SHARPER * 0.92))
    cv2.putText(large, _ascii(text), origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    cover = cv2.resize(large, (wide, tall), interpolation=cv2.INTER_AREA)[..., None] / 255.0
    part = canvas[y : y + tall, x : x + wide]
    part[:] = np.round(part * (1 - cover) + np.array(color) * cover).astype(np.uint8)
