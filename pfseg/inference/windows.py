"""Where windows lie in an image, and how images are padded to them.; shapes: image (C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from pfseg.data.tiling import Window, windows


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size at multiples of their step, the last row and column shifted back inside the image."""

    size: tuple[int, int] | None  # (h, w); None for one window over the whole image
    overlap: float  # share of a window that the next one covers too, 0 <= overlap < 1
    stride: int  # output stride of the network
    min_size: int  # smallest side that the network takes

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """Windows of an image of this (H, W), row by row; they end where the image does."""
        steps = [max(1, round(side * (1 - self.overlap))) for side in self.size or ()]
        return windows(shape, self.size, steps or None)

    def pad(self, image: np.ndarray) -> np.ndarray:
        """Add 0, the mean colour, at the bottom and right up to the window, or else to what the network takes."""
        size = self.size or [max(self.min_size, -(-side // self.stride) * self.stride) for side in image.shape[1:]]
        missing = [whole - side for whole, side in zip(size, image.shape[1:], strict=True)]
        return np.pad(image, ((0, 0), *((0, count) for count in missing))) if any(missing) else image


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
