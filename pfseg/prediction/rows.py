"""Prediction of an image in overlapping windows, from its rows to the rows of its map.

What is kept at a time: the pixels of one row of windows, the windows of one batch, and of the class probabilities only
what further windows will add to. That grows with the width of an image, and not with its height.

Shapes: K classes; (h, w) a window; (r, W) rows of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import cv2
import numpy as np

from pfseg.data.base import IGNORE
from pfseg.data.normalise import Normalise
from pfseg.data.tiling import Window
from pfseg.engine.inference import Inference, blend_weights
from pfseg.prediction.image import Image

Progress = Callable[[float], None]


@dataclass
class Rows:
    """The next finished rows of an image.

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
    band = _Band(image)
    blend = _Blend(inference.num_classes, width)
    for number, row in enumerate(places):
        y0, y1 = row[0].y0, row[0].y1
        bottom = places[number + 1][0].y0 if number + 1 < len(places) else height
        pixels, valid = band.move(y0, y1)
        labels = np.empty((bottom - y0, width), np.uint8)
        kept = np.empty((bottom - y0, width, inference.num_classes), np.float16) if probabilities else None
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

    def __init__(self, image: Image) -> None:
        self._image, self._top, self._bottom = image, 0, 0
        self._pixels = np.empty((0, image.shape[1], 3), np.uint8)
        self._valid: np.ndarray | None = None

    def move(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels (r, W, 3) uint8 and valid (r, W) bool of the rows [top, bottom), none above earlier ones."""
        start = max(top, self._bottom)
        pixels, valid = self._image.read(start, bottom)
        kept = slice(top - self._top, None)
        if valid is not None:
            earlier = self._valid[kept] if self._valid is not None else np.empty((0, valid.shape[1]), bool)
            self._valid = np.concatenate([earlier, valid])
        self._pixels = np.concatenate([self._pixels[kept], pixels])
        self._top, self._bottom = top, bottom
        return self._pixels, self._valid


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

    Kept are the sums of the columns of one window, and of the rows that the next row of windows covers too.

    Args:
        num_classes: K.
        width: W.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        self._num_classes, self._width = num_classes, width
        self._below = np.zeros((num_classes + 1, 0, width), np.float32)  # sums and, last, weights
        self._next = self._below
        self._sums = np.zeros((num_classes + 1, 0, 0), np.float32)
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
            self._begin(height, window.y1 - bottom)
        self._cover(window, height)
        if probabilities is not None:
            weight = blend_weights(*probabilities.shape[1:])[:height, :width]
            self._sums[:-1] += probabilities[:, :height, :width] * weight
            self._sums[-1] += weight
        rows, columns = bottom - window.y0, right - window.x0
        self._next[:, :, window.x0 : right] = self._sums[:, rows:, :columns]
        finished = self._sums[:-1, :rows, :columns] / np.maximum(self._sums[-1, :rows, :columns], 1e-30)
        self._sums = self._sums[:, :, columns:]
        return finished

    def _begin(self, height: int, overlap: int) -> None:
        """Begin a row of windows, `overlap` rows of which the next one covers too."""
        self._below, self._next = self._next, np.zeros((self._num_classes + 1, overlap, self._width), np.float32)
        self._sums, self._right = np.zeros((self._num_classes + 1, height, 0), np.float32), 0

    def _cover(self, window: Window, height: int) -> None:
        """Add the columns that no window of this row has covered yet, with what the windows above them gave."""
        new = np.zeros((self._num_classes + 1, height, window.x1 - self._right), np.float32)
        new[:, : self._below.shape[1]] = self._below[:, :, self._right : window.x1]
        self._sums, self._right = np.concatenate([self._sums, new], axis=2), window.x1
