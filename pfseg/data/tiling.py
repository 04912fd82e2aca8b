"""Windows of one size that cover a scene: the published protocol of iSAID, and of every set cut by this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pfseg.errors import ConfigError


class Window(NamedTuple):
    """Rows [y0, y1) and columns [x0, x1) of a scene."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array whose first two axes are rows and columns."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def windows(shape: Sequence[int], size: Sequence[int] | None, stride: Sequence[int] | None) -> list[Window]:
    """Windows at multiples of `stride`, the last row and column shifted back inside the scene; row by row.

    Args:
        shape: (H, W) of the scene.
        size: (h, w) of a window; a scene that is smaller on a side gets one window of the scene's own length there.
            None for one window, the whole scene.
        stride: (rows, columns) from one window to the next; None for the size.

    Raises:
        ConfigError: a size or stride below 1, or a stride beyond the size, which would leave gaps.
    """
    size = size or shape
    rows, columns = (_starts(*sides) for sides in zip(shape, size, stride or size, strict=True))
    return [Window(y, min(y + size[0], shape[0]), x, min(x + size[1], shape[1])) for y in rows for x in columns]


def padded(pixels: np.ndarray, size: Sequence[int], fill: Sequence[int]) -> np.ndarray:
    """Pad (h, w[, C]) at the bottom and right to `size` (H, W) by the value `fill` of each channel."""
    below, right = size[0] - pixels.shape[0], size[1] - pixels.shape[1]
    if not below and not right:
        return pixels
    shape = (pixels.shape[0] + below, pixels.shape[1] + right, *pixels.shape[2:])
    whole = np.empty(shape, pixels.dtype)
    whole[...] = fill if pixels.ndim == 3 else fill[0]
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole


def _starts(length: int, size: int, stride: int) -> list[int]:
    if not 0 < stride <= size:
        raise ConfigError(
            f"windows of {size} px at stride {stride} leave gaps or do not move on; expected 0 < stride <= size "
            "(config: dataset.prepare.size, dataset.prepare.stride)"
        )
    last = max(0, length - size)
    return [*range(0, last, stride), last]
