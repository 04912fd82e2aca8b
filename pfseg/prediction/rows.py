"""Prediction of an image in overlapping windows, from its rows to the rows of its map.

What is kept at a time: the pixels of one row of windows, the windows of one batch, and of the class probabilities only
what further windows will add to. That grows with the width of an image, and not with its height.

Shapes: K classes; (h, w) a window; (r, W) rows of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pfseg.data.base import IGNORE
from pfseg.data.normalise import Normalise
from pfseg.data.reader import Image
from pfseg.data.tiling import Window
from pfseg.data.transforms import resized
from pfseg.inference.blending import Blender
from pfseg.inference.certainty import MEASURES
from pfseg.inference.sliding import SlidingWindows, most_probable

Progress = Callable[[float], None]
_READ = 64  # rows of the file at a time, from multiples of it


@dataclass
class Rows:
    """The next finished rows of an image; they hold until the ones after them are asked for."""

    image: np.ndarray | None  # (r, W, C) uint8; None where nobody asks for them
    labels: np.ndarray  # (r, W) uint8 in [0, K), 255 where the image holds no data
    probabilities: np.ndarray | None  # (r, W, K) float16, 0 where it holds no data; None where they are not wanted
    measures: dict[str, np.ndarray]  # those wanted of `MEASURES` and "disagreement", (r, W) float32, NaN without data

    def clear(self, valid: np.ndarray | None) -> Rows:
        """Clear pixels without data or outside of the outline; `valid` (r, W) is False there."""
        if valid is not None:
            self.labels[~valid] = IGNORE
            if self.probabilities is not None:
                self.probabilities[~valid] = 0
            for values in self.measures.values():
                values[~valid] = np.nan
        return self


def predict_rows(
    image: Image,
    sliding: SlidingWindows,
    normalise: Normalise,
    *,
    wanted: Collection[str],
    progress: Progress,
    black: bool = False,
    first: int = 0,
) -> Iterator[Rows]:
    """Predict an image of any size; `wanted` are the names of the fields and measures of `Rows` to fill.

    Pixels without data go to the network `black`, as in training, or else as the mean colour, as before training kept a
    record of them; windows without any data, or outside of the image's outline, don't go there at all.
    `progress` is called with the number of pixels finished since the last call.

    Yields:
        What each row of windows adds, from the row `first` downwards: the same as if all rows had been predicted.

    Raises:
        DataError: a damaged part of the image.
    """
    width, classes = image.shape[1], sliding.num_classes
    blender = Blender(sliding.planes, image.shape, sliding.grid.windows(image.shape), half=True)
    band = _Band(image, max(row.bottom + row.overlap - row.top for row in blender.rows))
    most = max(row.bottom - row.top for row in blender.rows)
    all_labels = np.empty((most, width), np.uint8)
    all_kept = np.empty((most, width, classes), np.float16) if "probabilities" in wanted else None
    measures = {name: np.empty((most, width), np.float32) for name in wanted if name in (*MEASURES, "disagreement")}
    for number, row in enumerate(blender.rows):
        if number < first and row.bottom + row.overlap <= blender.rows[first].top:
            continue
        count = row.bottom - row.top
        pixels, valid = band.move(row.top, row.bottom + row.overlap)
        shown = _both(valid, image.outline and image.outline.mask(row.top, row.bottom + row.overlap))
        labels, kept = all_labels[:count], None if all_kept is None else all_kept[:count]
        found = _window_probabilities(row.windows, pixels, valid, shown, sliding, normalise, black)
        for block, mean in blender.add(row, found):
            columns = slice(block.x0, block.x1)
            progress(labels[:, columns].size if number >= first else 0)
            if shown is not None and not shown[:count, columns].any():
                continue  # cleared below
            labels[:, columns] = mean[:classes].argmax(axis=0)
            if kept is not None:
                kept[:, columns] = np.moveaxis(mean[:classes], 0, 2)
            for name, values in measures.items():
                values[:count, columns] = measure(name, mean, classes)
        if number < first:
            continue
        rows = Rows(pixels[:count], labels, kept, {name: values[:count] for name, values in measures.items()})
        yield rows.clear(None if shown is None else shown[:count])


def predict_resized(
    image: Image,
    size: tuple[int, int],
    sliding: SlidingWindows,
    normalise: Normalise,
    *,
    wanted: Collection[str],
    progress: Progress,
    black: bool = False,
) -> Iterator[Rows]:
    """Predict an image that is resized to `size` (h, w) as a whole, otherwise as `predict_rows`.

    The probabilities are resized back; image and probabilities are held in memory as a whole.
    """
    pixels, valid = image.read(0, image.shape[0])
    small = resized(pixels, size, cv2.INTER_CUBIC)
    planes = sliding.probabilities(_planes(small, None, normalise))
    planes = np.stack([cv2.resize(plane, image.shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in planes])
    classes = sliding.num_classes
    kept = np.moveaxis(planes[:classes], 0, 2).astype(np.float16) if "probabilities" in wanted else None
    names = [name for name in wanted if name in (*MEASURES, "disagreement")]
    measures = {name: measure(name, planes, classes) for name in names}
    progress(image.shape[0] * image.shape[1])
    rows = Rows(pixels, most_probable(planes[:classes]), kept, measures)
    yield rows.clear(_both(valid, image.outline and image.outline.mask(0, image.shape[0])))


def measure(name: str, planes: np.ndarray, classes: int) -> np.ndarray:
    """A measure (r, c) of blended planes: the probabilities of the classes, and the disagreement if it is wanted."""
    found = planes[classes] if name == "disagreement" else MEASURES[name](planes[:classes])
    return np.asarray(np.clip(found, 0, 1), np.float32)


class _Band:
    """The rows of an image that a row of windows covers; each row of the file is read once."""

    def __init__(self, image: Image, height: int) -> None:
        self._image, self._top, self._bottom = image, 0, 0
        self._pixels = np.empty((height, image.shape[1], image.channels), np.uint8)
        self._valid = np.empty((height, image.shape[1]), bool) if image.has_nodata else None

    def move(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (r, W, C) uint8 and valid (r, W) bool of the rows [top, bottom), none above earlier ones."""
        kept, step = max(0, self._bottom - top), top - self._top
        for rows in (self._pixels, self._valid):
            if rows is not None:
                rows[:kept] = rows[step : step + kept]
        start = top + kept
        while start < bottom:
            stop = min(start - start % _READ + _READ, bottom)
            self._pixels[start - top : stop - top], valid = self._image.read(start, stop)
            if self._valid is not None:
                self._valid[start - top : stop - top] = valid
            start = stop
        self._top, self._bottom = top, bottom
        return self._pixels[: bottom - top], None if self._valid is None else self._valid[: bottom - top]


def _both(valid: np.ndarray | None, inside: np.ndarray | None) -> np.ndarray | None:
    """Pixels that hold data and lie within the outline; None for all."""
    return inside if valid is None else valid if inside is None else valid & inside


def _window_probabilities(
    row: Sequence[Window],
    pixels: np.ndarray,
    valid: np.ndarray | None,
    shown: np.ndarray | None,
    sliding: SlidingWindows,
    normalise: Normalise,
    black: bool,
) -> Iterator[np.ndarray | None]:
    """Probabilities (K, h, w) of each window of a row, None for a window of which nothing is shown."""
    waiting: list[np.ndarray | None] = []
    for window in row:
        columns = slice(window.x0, window.x1)
        empty = shown is not None and not shown[:, columns].any()
        cleared = None if black or valid is None else valid[:, columns]
        waiting.append(None if empty else sliding.grid.pad(_planes(pixels[:, columns], cleared, normalise)))
        batch = [planes for planes in waiting if planes is not None]
        if len(batch) == sliding.batch_size or window is row[-1]:
            found = iter(sliding.window_probabilities(batch) if batch else ())
            yield from (None if planes is None else next(found) for planes in waiting)
            waiting = []


def _planes(pixels: np.ndarray, valid: np.ndarray | None, normalise: Normalise) -> np.ndarray:
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    normalise(np.ascontiguousarray(pixels), planes)
    if valid is not None:
        planes[:, ~valid] = 0
    return planes
