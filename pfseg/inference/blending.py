"""Blending of overlapping windows.

Shapes: K classes, W columns of the image; probabilities (K, h, w) float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from pfseg.data.tiling import Window

_LEAST = 1e-30  # instead of a weight of 0, where no window lies


def blend_weights(height: int, width: int) -> np.ndarray:
    """Weights (h, w) float32 above 0 that fall smoothly from a window's centre to its edges (a Hann window)."""
    rows, columns = (np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width))
    return np.outer(rows, columns).astype(np.float32)


class WindowRow(NamedTuple):
    """Windows side by side, from left to right, all starting in one row of pixels."""

    windows: list[Window]
    bottom: int  # the first row of pixels that the next row of windows covers, or the image's height

    @property
    def top(self) -> int:
        """First row of pixels."""
        return self.windows[0].y0

    @property
    def overlap(self) -> int:
        """Number of rows of pixels that the next row of windows covers too."""
        return max(window.y1 for window in self.windows) - self.bottom


def window_rows(windows: Sequence[Window], height: int) -> list[WindowRow]:
    """Group windows that come row by row, in an image of this height."""
    rows = [list(row) for _, row in groupby(windows, key=lambda window: window.y0)]
    bottoms = [min(below[0].y0, above[0].y1) for above, below in pairwise(rows)]
    return [WindowRow(row, bottom) for row, bottom in zip(rows, [*bottoms, height], strict=True)]


class Blender:
    """Mean of the windows that cover a pixel, weighted by `blend_weights`; 0 where none does.

    Windows come row by row, each row from left to right, and what no later one reaches is handed out at once. Kept are
    the sums below the present window, and those of the rows of pixels that the next row of windows covers too.

    Args:
        num_classes: K.
        shape: (H, W) of the image.
        windows: all windows, row by row; their parts inside the image.
        half: keep the rows of pixels, which grow with the width of the image, as means in half precision.

    `rows` are the rows of windows, for `add`.
    """

    def __init__(
        self, num_classes: int, shape: tuple[int, int], windows: Sequence[Window], *, half: bool = False
    ) -> None:
        self.rows = window_rows(windows, shape[0])
        self._num_classes, self._width, self._half = num_classes, shape[1], half
        overlap = max(row.overlap for row in self.rows)
        self._rows = np.zeros((num_classes, overlap, shape[1]), np.float16 if half else np.float32)
        self._weight = np.zeros((overlap, shape[1]), np.float32)
        self._kept = 0  # how many of these rows hold something for the windows to come

    def add(self, row: WindowRow, probabilities: Iterable[np.ndarray | None]) -> Iterator[tuple[Window, np.ndarray]]:
        """Add the next row of windows; `probabilities` of whole windows, also beyond the image; None leaves one out.

        Yields:
            Blocks of the rows above `row.bottom`, from the image's left to its right edge, and their mean (K, r, c).
        """
        count, kept = row.bottom - row.top, self._kept
        self._kept = row.overlap
        sums = np.zeros((self._num_classes + 1, max(count + row.overlap, kept), 0), np.float32)  # last, the weights
        left = 0
        rights = [*(window.x0 for window in row.windows[1:]), self._width]
        for window, right, found in zip(row.windows, rights, probabilities, strict=False):
            new = self._above(left + sums.shape[2], max(window.x1, right), sums.shape[1], kept)
            sums = np.concatenate([sums, new], axis=2)
            if found is not None:
                height, width = window.shape
                weight = blend_weights(*found.shape[1:])[:height, :width]
                part = sums[:, :height, window.x0 - left : window.x1 - left]
                part[:-1] += found[:, :height, :width] * weight
                part[-1] += weight
            done, sums = sums[:, :, : right - left], sums[:, :, right - left :]
            mean = done[:-1] / np.maximum(done[-1], _LEAST)
            below = slice(count, count + row.overlap)
            self._rows[:, : row.overlap, left:right] = (mean if self._half else done[:-1])[:, below]
            self._weight[: row.overlap, left:right] = done[-1, below]
            yield Window(row.top, row.bottom, left, right), mean[:, :count]
            left = right

    def _above(self, left: int, right: int, height: int, kept: int) -> np.ndarray:
        """Sums and weights (K + 1, height, columns) that the windows above have left for some columns."""
        sums = np.zeros((self._num_classes + 1, height, max(0, right - left)), np.float32)
        rows, sums[-1, :kept] = self._rows[:, :kept, left:right], self._weight[:kept, left:right]
        if self._half:
            np.multiply(rows, sums[-1, :kept], out=sums[:-1, :kept])
        else:
            sums[:-1, :kept] = rows
        return sums
