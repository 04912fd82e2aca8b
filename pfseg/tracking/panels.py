"""Pictures of samples: image | ground truth | prediction in class colours, with a legend; and of confusion matrices.

Shapes: image (H, W, 3) uint8 RGB; labels (H, W), integers in [0, K), or 255 without a class, which is hatched; a cell
of a picture (h, w, 3) uint8 RGB. PNG files are written whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pfseg.data.base import IGNORE, ClassInfo
from pfseg.files import write_atomic
from pfseg.metrics.calibration import Calibration

SampleRow = tuple[np.ndarray, np.ndarray, np.ndarray, str]
_Strip = tuple[str, str, list[np.ndarray]]  # a row of a picture: the sample's name, a note, cells of one size

_PAPER, _INK, _FAINT, _LINE = (255, 255, 255), (33, 37, 41), (108, 114, 121), (206, 210, 214)  # RGB
_HEAT, _NOTHING = (11, 98, 176), (238, 240, 242)  # a whole row in one cell; a row without pixels
_MARGIN, _GAP = 16, 10
_CELL = 44  # side of a cell of a confusion matrix
_CHART = 300  # side of a chart
_OVERSAMPLING = 4  # pixels of a large image that are averaged to one, per side


def save_panels(path: Path, rows: Sequence[SampleRow], classes: Sequence[ClassInfo], *, height: int = 320) -> None:
    """Write one picture with a row for each sample: image, ground truth, prediction; name and correct pixels above.

    A row is at most `height` pixels high and a column 1.5 times as wide. Larger images are scaled down, those below
    half of it up by a whole factor.

    Raises:
        WriteError: the file can't be written.
    """
    strips = []
    for image, truth, pred, name in rows:
        size = _fit(truth.shape, height)
        counted = truth != IGNORE
        share = f"{100 * (pred == truth)[counted].mean():.1f} % of pixels correct" if counted.any() else ""
        cells = [_resize(image, size), _colored(truth, classes, size), _colored(pred, classes, size)]
        strips.append((name, share or "no labelled pixel", cells))
    _save_sheet(path, ("image", "ground truth", "prediction"), strips, classes, [truth for _, truth, _, _ in rows])


def save_preview(path: Path, rows: Sequence[SampleRow], classes: Sequence[ClassInfo], *, height: int = 280) -> None:
    """Write one picture of training samples, a row as in `save_panels` for each.

    It shows the image; the mask, laid over the image in class colours; the edges (H, W), 0 or 1, in white over the
    darkened image; above them the name and the largest classes.

    Raises:
        WriteError: the file can't be written.
    """
    strips = []
    for image, mask, edge, name in rows:
        size = _fit(mask.shape, height)
        plain = _resize(image, size)
        over = cv2.addWeighted(_colored(mask, classes, size), 0.6, plain, 0.4, 0)
        line = cv2.resize(edge.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
        edges = (plain * 0.35 * (1 - line) + 255 * line).astype(np.uint8)
        labels, counts = np.unique(mask[mask != IGNORE], return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:3]
        note = ", ".join(f"{classes[labels[i]].name} {100 * counts[i] / mask.size:.3g} %" for i in largest)
        strips.append((name, note or "ignored", [plain, over, edges]))
    _save_sheet(path, ("image", "mask", "edges"), strips, classes, [mask for _, mask, _, _ in rows])


def save_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a picture of a confusion matrix (K, K), [truth, prediction], each row in percent of its class's pixels.

    Raises:
        WriteError: the file can't be written.
    """
    font, upright = _font(14), ImageFont.TransposedFont(_font(14), Image.Transpose.ROTATE_90)
    names = [_shorten(name, 200, font) for name in class_names]
    label = _MARGIN + round(max(map(font.getlength, names))) + 12
    side, note = label + len(names) * _CELL, "rows: truth, columns: prediction; percent of the row"
    page, draw = _paper(max(side, _MARGIN + round(_font(13).getlength(note))) + _MARGIN, side + 24 + _MARGIN)
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    for row, name in enumerate(names):
        top = label + row * _CELL
        draw.text((label - 10, top + _CELL // 2), name, _INK, font, anchor="rm")
        draw.text((top + _CELL // 2 - 8, label - 8 - round(font.getlength(name))), name, _INK, upright)
        for column, share in enumerate(shares[row]):
            left = label + column * _CELL
            fill = _shade(share) if confusion[row].any() else _NOTHING
            draw.rectangle((left, top, left + _CELL - 2, top + _CELL - 2), fill)
            if round(100 * share):
                middle = (left + _CELL // 2 - 1, top + _CELL // 2 - 1)
                draw.text(middle, f"{100 * share:.0f}", _PAPER if share > 0.5 else _INK, font, anchor="mm")
    draw.text((_MARGIN, side + 10), note, _FAINT, _font(13))
    _save(path, page)


def save_reliability(path: Path, before: Calibration, after: Calibration) -> None:
    """Write a reliability diagram: the accuracy of each bin of confidence, before and after temperature scaling.

    The closer the bars to the diagonal, the better; their strength says how many pixels they hold.

    Raises:
        WriteError: the file can't be written.
    """
    step, font = _CHART // len(before.pixels), _font(13)
    side = step * len(before.pixels)
    page, draw = _paper(2 * side + 5 * _MARGIN + 40, side + 134)
    for number, (title, found) in enumerate((("before", before), ("after", after))):
        left, top = _MARGIN + 40 + number * (side + 2 * _MARGIN), _MARGIN + 28
        text = f"{title}: ECE {found.ece:.2f} %, NLL {found.nll:.3f}, Brier {found.brier:.3f}"
        draw.text((left, _MARGIN), text, _INK, font)
        most = max(1, *found.pixels)
        for place, (count, accuracy) in enumerate(zip(found.pixels, found.accuracy, strict=True)):
            if height := round(side * accuracy):
                at = left + place * step
                fill = _shade(0.25 + 0.75 * (count / most) ** 0.5)
                draw.rectangle((at, top + side - height, at + step - 2, top + side), fill)
        draw.rectangle((left, top, left + side, top + side), outline=_LINE)
        draw.line((left, top + side, left + side, top), _INK, 2)
        for share in (0.0, 0.5, 1.0):
            draw.text((left + side * share, top + side + 6), f"{share:g}", _FAINT, font, anchor="ma")
            if not number:
                draw.text((left - 8, top + side * (1 - share)), f"{share:g}", _FAINT, font, anchor="rm")
        draw.text((left + side / 2, top + side + 26), "confidence", _FAINT, font, anchor="ma")
    note = "bars: accuracy; stronger ones hold more pixels"
    draw.text((_MARGIN, page.height - _MARGIN), note, _FAINT, font, anchor="ls")
    _save(path, page)


def _save_sheet(
    path: Path,
    heads: Sequence[str],
    strips: Sequence[_Strip],
    classes: Sequence[ClassInfo],
    labels: Sequence[np.ndarray],
) -> None:
    """Lay out heads, strips and the legend below one another."""
    column = max(120, *(cells[0].shape[1] for *_, cells in strips))  # a caption needs some width
    width, font = len(heads) * (column + _GAP) - _GAP, _font(13)
    lefts = [_MARGIN + place * (column + _GAP) for place in range(len(heads))]
    legend = _legend(classes, any((mask == IGNORE).any() for mask in labels), width)
    height = 32 + sum(20 + len(cells[0]) + _GAP for *_, cells in strips) + legend.height
    page, draw = _paper(width + 2 * _MARGIN, height + 2 * _MARGIN)
    for left, head in zip(lefts, heads, strict=True):
        draw.text((left, _MARGIN), head, _INK, _font(17, bold=True))
    y = _MARGIN + 32
    for name, note, cells in strips:
        room = width - font.getlength(note) - 24
        draw.text((_MARGIN, y), _shorten(name, room, font), _FAINT, font)
        draw.text((_MARGIN + width, y), note, _FAINT, font, anchor="ra")
        for left, cell in zip(lefts, cells, strict=True):
            _framed(page, draw, cell, left, y + 20)
        y += 20 + len(cells[0]) + _GAP
    page.paste(legend, (_MARGIN, y))
    _save(path, page)


def _legend(classes: Sequence[ClassInfo], ignored: bool, width: int) -> Image.Image:
    """Swatches and names, wrapped into lines."""
    font, x, y = _font(14), 0, 0
    swatches = [(info.name, np.full((16, 16, 3), info.color, np.uint8)) for info in classes]
    placed = []
    for name, swatch in [*swatches, *[("ignored", _hatch((16, 16)))] * ignored]:
        text = _shorten(name, width - 30, font)
        needed = 24 + round(font.getlength(text))
        if x > 0 and x + needed > width:
            x, y = 0, y + 24
        placed.append((x, y + 4, text, swatch))
        x += needed + 22
    strip, draw = _paper(width, y + 24)
    for left, top, text, swatch in placed:
        _framed(strip, draw, swatch, left, top)
        draw.text((left + 23, top + 8), text, _INK, font, anchor="lm")
    return strip


def _framed(page: Image.Image, draw: ImageDraw.ImageDraw, cell: np.ndarray, left: int, top: int) -> None:
    page.paste(Image.fromarray(cell), (left, top))
    draw.rectangle((left, top, left + cell.shape[1] - 1, top + len(cell) - 1), outline=_LINE)


def _fit(shape: tuple[int, ...], height: int) -> tuple[int, int]:
    """Size (width, height) of a cell: within the limits, small images enlarged by a whole factor."""
    scale = min(height / shape[0], 1.5 * height / shape[1])
    scale = float(int(scale)) if scale >= 2 else min(scale, 1.0)
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _thin(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Leave out rows and columns of a large image that would hardly count in its cell."""
    step = max(1, min(pixels.shape[1] // size[0], pixels.shape[0] // size[1]) // _OVERSAMPLING)
    return pixels[::step, ::step]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    method = cv2.INTER_NEAREST if size[0] > image.shape[1] else cv2.INTER_AREA
    pixels: np.ndarray = cv2.resize(np.ascontiguousarray(_thin(image, size)), size, interpolation=method)
    return pixels


def _colored(labels: np.ndarray, classes: Sequence[ClassInfo], size: tuple[int, int]) -> np.ndarray:
    """The cell of a label map."""
    labels = _thin(labels, size)
    palette = np.array([info.color for info in classes], np.uint8)
    known = labels < len(palette)
    cell = _resize(palette[np.where(known, labels, 0)], size)
    shown = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    return np.where(shown[..., None], cell, _hatch(size))


def _hatch(size: tuple[int, int]) -> np.ndarray:
    """Grey stripes, which no class colour looks like."""
    y, x = np.mgrid[: size[1], : size[0]]
    return np.where(((x + y) % 12 < 6)[..., None], np.uint8(72), np.uint8(104)).repeat(3, axis=2)


def _shade(share: float) -> tuple[int, ...]:
    """A colour from that of the paper, at 0, to full strength, at 1."""
    return tuple(round((1 - share) * paper + share * heat) for paper, heat in zip(_PAPER, _HEAT, strict=True))


def _paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), _PAPER)
    return page, ImageDraw.Draw(page)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which opencv-python brings: Latin, Greek and Cyrillic; where it is missing, one that has less."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    for place in (str(Path(cv2.__file__).parent / "qt" / "fonts" / name), name):
        with suppress(OSError):
            return ImageFont.truetype(place, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels have FreeType"
    return font


def _shorten(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """Cut the beginning of a text that is too long; of a path its end tells more."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 4 and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text


def _save(path: Path, page: Image.Image) -> None:
    content = io.BytesIO()
    page.save(content, "png", compress_level=3)
    write_atomic(path, content.getvalue())
