"""Prediction of an image in overlapping windows, from its rows to the rows of its map.

What is kept at a time: the pixels of one row of windows, the windows of one batch, and of the class probabilities only
what further windows will add to. That grows with the width of an image, and not with its height.

Shapes: K classes; (h, w) a window; (r, W) rows of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import cv2
import numpy as np

from pfseg.data.base import IGNORE
from pfseg.data.normalise import Normalise
from pfseg.data.tiling import Window
from pfseg.inference.windows import Inference, blend_weights
from pfseg.prediction.image import Image

Progress = Callable[[float], None]
_READ = 64  # rows of the file at a time
_LEAST = 1e-30  # instead of a weight of 0, where no window had a say


@dataclass
class Rows:
    """The next finished rows of an image; they hold until the ones after them are asked for.

    Attributes:
        image: (r, W, 3) uint8 RGB.
        labels: (r, W) uint8 in [0, K), 255 where the image holds no data.
        probabilities: (r, W, K) float16, 0 where it holds none; None where they are not wanted.
    """

    image: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray | None


def predict_rows(
    image: Image, inference: Inference, normalise: Normalise, *, probabilities: bool, progress: Progress
) -> Iterator[Rows]:
    """Predict an image of any size.

    Pixels without data go to the network as the mean colour; windows without any data don't go there at all.

    Args:
        image: the image.
        inference: the network and how it is applied; its `window` is set.
        normalise: from pixels to what the network takes.
        probabilities: whether they are wanted.
        progress: called with the pixels finished since the last call.

    Yields:
        All rows from the top downwards.

    Raises:
        DataError: a damaged part of the image.
    """
    height, width = image.shape
    places = [list(row) for _, row in groupby(inference.windows(image.shape), key=lambda window: window.y0)]
    band = _Band(image, places[0][0].y1)
    overlaps = (above[0].y1 - below[0].y0 for above, below in pairwise(places))
    blend = _Blend(inference.num_classes, width, max(overlaps, default=0))
    bottoms = [*(row[0].y0 for row in places[1:]), height]
    most = max(bottom - row[0].y0 for row, bottom in zip(places, bottoms, strict=True))
    all_labels = np.empty((most, width), np.uint8)
    all_kept = np.empty((most, width, inference.num_classes), np.float16) if probabilities else None
    for row, bottom in zip(places, bottoms, strict=True):
        y0, y1 = row[0].y0, row[0].y1
        pixels, valid = band.move(y0, y1)
        labels, kept = all_labels[: bottom - y0], None if all_kept is None else all_kept[: bottom - y0]
        for window, found in _window_probabilities(row, pixels, valid, inference, normalise):
            x1 = next((other.x0 for other in row if other.x0 > window.x0), width)
            blended = blend.add(window, found, bottom, x1)  # (K, bottom - y0, x1 - x0)
            labels[:, window.x0 : x1] = blended.argmax(axis=0)
            if kept is not None:
                kept[:, window.x0 : x1] = np.moveaxis(blended, 0, 2)
            progress((bottom - y0) * (x1 - window.x0))
        if valid is not None:
            labels[~valid[: bottom - y0]] = IGNORE
            if kept is not None:
                kept[~valid[: bottom - y0]] = 0
        yield Rows(pixels[: bottom - y0], labels, kept)


def predict_resized(
    image: Image,
    size: tuple[int, int],
    inference: Inference,
    normalise: Normalise,
    *,
    probabilities: bool,
    progress: Progress,
) -> Iterator[Rows]:
    """Predict an image that is resized to `size` (h, w) as a whole, as `predict_rows` otherwise.

    The probabilities are resized back; image and probabilities are held in memory as a whole.
    """
    pixels, valid = image.read(0, image.shape[0])
    small = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC)
    planes = np.empty((3, *size), np.float32)
    normalise(small, planes)
    found = inference.probabilities(planes)
    found = np.stack([cv2.resize(plane, image.shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in found])
    labels = found.argmax(axis=0).astype(np.uint8)
    kept = np.moveaxis(found, 0, 2).astype(np.float16) if probabilities else None
    if valid is not None:
        labels[~valid] = IGNORE
        if kept is not None:
            kept[~valid] = 0
    progress(image.shape[0] * image.shape[1])
    yield Rows(pixels, labels, kept)


class _Band:
    """The rows of an image that a row of windows covers; each row of the file is read once."""

    def __init__(self, image: Image, height: int) -> None:
        self._image, self._top, self._bottom = image, 0, 0
        self._pixels = np.empty((height, image.shape[1], 3), np.uint8)
        self._valid: np.ndarray | None = None

    def move(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (r, W, 3) uint8 and valid (r, W) bool of the rows [top, bottom), none above earlier ones."""
        kept, step = max(0, self._bottom - top), top - self._top
        for rows in (self._pixels, self._valid):
            if rows is not None:
                rows[:kept] = rows[step : step + kept]
        for start in range(top + kept, bottom, _READ):
            stop = min(start + _READ, bottom)
            pixels, valid = self._image.read(start, stop)
            self._pixels[start - top : stop - top] = pixels
            if valid is not None:
                if self._valid is None:
                    self._valid = np.empty(self._pixels.shape[:2], bool)
                self._valid[start - top : stop - top] = valid
        self._top, self._bottom = top, bottom
        return self._pixels[: bottom - top], None if self._valid is None else self._valid[: bottom - top]


def _window_probabilities(
    row: Sequence[Window], pixels: np.ndarray, valid: np.ndarray | None, inference: Inference, normalise: Normalise
) -> Iterator[tuple[Window, np.ndarray | None]]:
    """Each window of a row with its probabilities (K, h, w), None for a window without data."""
    waiting: list[tuple[Window, np.ndarray | None]] = []
    for window in row:
        columns = slice(window.x0, window.x1)
        seen = None if valid is None else valid[:, columns]
        waiting.append(
            (window, None if seen is not None and not seen.any() else _planes(pixels[:, columns], seen, normalise))
        )
        if sum(planes is not None for _, planes in waiting) == inference.batch_size or window is row[-1]:
            batch = [inference.padded(planes) for _, planes in waiting if planes is not None]
            found = iter(inference.window_probabilities(np.stack(batch)) if batch else ())
            yield from ((place, None if planes is None else next(found)) for place, planes in waiting)
            waiting = []


def _planes(pixels: np.ndarray, valid: np.ndarray | None, normalise: Normalise) -> np.ndarray:
    planes = np.empty((3, *pixels.shape[:2]), np.float32)
    normalise(np.ascontiguousarray(pixels), planes)
    if valid is not None:
        planes[:, ~valid] = 0
    return planes


class _Blend:
    """Weighted mean of windows that come row by row, from left to right.

    Kept are the sums of the columns of one window, and the mean so far of the rows that the next row of windows covers
    too: in half precision, since that is what grows with the width of an image.

    Args:
        num_classes: K.
        width: W.
        overlap: rows, at most, that two rows of windows have in common.
    """

    def __init__(self, num_classes: int, width: int, overlap: int) -> None:
        self._num_classes = num_classes
        self._mean = np.zeros((num_classes, overlap, width), np.float16)
        self._weight = np.zeros((overlap, width), np.float32)
        self._kept = self._next = 0  # rows that the windows above have given, and that this row of windows leaves
        self._sums = np.zeros((num_classes + 1, 0, 0), np.float32)  # and, last, the weights
        self._right = 0  # column behind the last window

    def add(self, window: Window, probabilities: np.ndarray | None, bottom: int, right: int) -> np.ndarray:
        """Add a window.

        Args:
            window: its part inside the image.
            probabilities: (K, h, w) of the whole window, which may be larger at the bottom and right; None for no say.
            bottom: first row of the next row of windows, or the image's height.
            right: first column of the next window, or the image's width.

        Returns:
            (K, bottom - y0, right - x0) float32, finished.
        """
        height, width = window.y1 - window.y0, window.x1 - window.x0
        if window.x0 == 0:
            self._kept, self._next = self._next, window.y1 - bottom
            self._sums, self._right = np.zeros((self._num_classes + 1, height, 0), np.float32), 0
        self._cover(window, height)
        if probabilities is not None:
            weight = blend_weights(*probabilities.shape[1:])[:height, :width]
            self._sums[:-1] += probabilities[:, :height, :width] * weight
            self._sums[-1] += weight
        done = self._sums[:, :, : right - window.x0]
        mean = done[:-1] / np.maximum(done[-1], _LEAST)
        rows, columns = bottom - window.y0, slice(window.x0, right)
        self._mean[:, : self._next, columns] = mean[:, rows:]
        self._weight[: self._next, columns] = done[-1, rows:]
        self._sums = self._sums[:, :, right - window.x0 :]
        return mean[:, :rows]

    def _cover(self, window: Window, height: int) -> None:
        """Add the columns that no window of this row has covered yet, with what the windows above them gave."""
        columns = slice(self._right, window.x1)
        new = np.zeros((self._num_classes + 1, height, window.x1 - self._right), np.float32)
        new[-1, : self._kept] = self._weight[: self._kept, columns]
        np.multiply(self._mean[:, : self._kept, columns], new[-1, : self._kept], out=new[:-1, : self._kept])
        self._sums, self._right = np.concatenate([self._sums, new], axis=2), window.x1
