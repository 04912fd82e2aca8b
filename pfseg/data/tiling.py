"""Windows of one size that cover a scene: the published protocol of iSAID, and of every set cut by this package."""

from __future__ import annotations

from typing import NamedTuple

from pfseg.errors import ConfigError


class Window(NamedTuple):
    """Rows [y0, y1) and columns [x0, x1) of a scene."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array whose first two axes are rows and columns."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def windows(shape: tuple[int, int], size: tuple[int, int], stride: tuple[int, int]) -> list[Window]:
    """Windows at multiples of `stride`, the last row and column shifted back inside the scene.

    Args:
        shape: (H, W) of the scene.
        size: (h, w) of a window; a scene that is smaller on a side gets one window of the scene's own length there.
        stride: (rows, columns) from one window to the next.

    Returns:
        Row by row; together they cover every pixel.

    Raises:
        ConfigError: a size or stride below 1, or a stride beyond the size, which would leave gaps.
    """
    rows, columns = (_starts(*sides) for sides in zip(shape, size, stride, strict=True))
    return [Window(y, min(y + size[0], shape[0]), x, min(x + size[1], shape[1])) for y in rows for x in columns]


def _starts(length: int, size: int, stride: int) -> list[int]:
    if not 0 < stride <= size:
        raise ConfigError(
            f"windows of {size} px at stride {stride} leave gaps or do not move on; expected 0 < stride <= size "
            "(config: dataset.prepare.size, dataset.prepare.stride)"
        )
    if length <= size:
        return [0]
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts
