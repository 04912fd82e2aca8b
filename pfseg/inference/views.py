"""Several views of each window: scaled and mirrored, predicted, and averaged.

Shapes: batch (N, 3, h, w) float32, normalised; logits and probabilities (N, K, h, w) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from pfseg.errors import ConfigError

Flips = Literal["none", "h", "v", "hv", "d4"]
Network = Callable[[np.ndarray], np.ndarray]  # normalised batch -> logits


class Flip(NamedTuple):
    """A mirrored view: axes exchanged, then rows reversed, then columns reversed."""

    transposed: bool
    rows: bool
    columns: bool

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """The view of a batch."""
        return self._reversed(batch.swapaxes(2, 3) if self.transposed else batch)

    def undo(self, batch: np.ndarray) -> np.ndarray:
        """The batch of a view."""
        batch = self._reversed(batch)
        return batch.swapaxes(2, 3) if self.transposed else batch

    def _reversed(self, batch: np.ndarray) -> np.ndarray:
        return batch[:, :, :: -1 if self.rows else 1, :: -1 if self.columns else 1]


_NO, _BOTH = (False,), (False, True)
_FLIPS = {
    name: tuple(Flip(t, rows, columns) for t in axes for rows in vertical for columns in horizontal)
    for name, axes, vertical, horizontal in (
        ("none", _NO, _NO, _NO),
        ("h", _NO, _NO, _BOTH),
        ("v", _NO, _BOTH, _NO),
        ("hv", _NO, _BOTH, _BOTH),
        ("d4", _BOTH, _BOTH, _BOTH),
    )
}


@dataclass(frozen=True)
class Views:
    """Probabilities as the mean of the softmax over all views.

    A window is resized by every scale (to multiples of `stride`), mirrored in every way, and predicted; logits are
    mirrored and resized back before the softmax.

    Attributes:
        scales: factors above 0.
        flips: `none`, `h` (left and right exchanged), `v` (top and bottom), `hv` (both, and half a turn) or `d4` (the
            8 symmetries of a square); each with the unchanged view.
        stride: output stride of the network.
        min_size: smallest side that the network takes.
    """

    scales: Sequence[float]
    flips: Flips
    stride: int
    min_size: int

    def __len__(self) -> int:
        """How often each window is predicted."""
        return len(self.scales) * len(_FLIPS[self.flips])

    @property
    def plain(self) -> bool:
        """Whether the unchanged view is the only one."""
        return len(self) == 1 and self.scales[0] == 1

    def probabilities(self, network: Network, batch: np.ndarray) -> np.ndarray:
        """(N, K, h, w) of a batch."""
        total: np.ndarray | None = None
        for logits in self._logits(network, batch):
            found = softmax(logits)
            total = found if total is None else np.add(total, found, out=total)
        assert total is not None
        return total if len(self) == 1 else np.divide(total, len(self), out=total)

    def _logits(self, network: Network, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Logits of each view, turned back."""
        height, width = batch.shape[2:]
        for scale in self.scales:
            scaled = batch if scale == 1 else _resize(batch, (self._scaled(height, scale), self._scaled(width, scale)))
            for flip in _FLIPS[self.flips]:
                logits = flip.undo(network(np.ascontiguousarray(flip.apply(scaled))))
                yield logits if scale == 1 else _resize(logits, (height, width))

    def _scaled(self, side: int, scale: float) -> int:
        return max(round(side * scale / self.stride) * self.stride, self.stride, self.min_size)


def check_views(window: Sequence[int] | None, overlap: float, views: Views) -> None:
    """Check the settings of windows and views.

    Raises:
        ConfigError: one is out of range; names it, its value and what is expected.
    """
    scales, least = views.scales, views.min_size
    if window is not None and min(window) < 1:
        raise ConfigError(f"window={list(window)}: expected a height and a width of at least 1 px")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap={overlap}: expected a share of the window from 0 to below 1, such as 0.5")
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ConfigError(f"scales={list(scales)}: expected one or more numbers above 0, such as [0.75,1,1.25]")
    if views.flips not in _FLIPS:
        raise ConfigError(f"flips={views.flips}: expected {' | '.join(_FLIPS)}")
    if window is not None and round(min(window) * min(scales)) < least:
        raise ConfigError(
            f"windows of {window[0]}x{window[1]} px at scale {min(scales):g} are too small for this network: it takes "
            f"{least} px a side at least: use windows of {math.ceil(least / min(scales))} px or larger scales"
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, over K."""
    found: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    return found


def _resize(batch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, C, h, w) to (N, C, *size), pixel centres on the half grid; areas are averaged when it gets smaller."""
    method = cv2.INTER_AREA if size[0] * size[1] < batch.shape[2] * batch.shape[3] else cv2.INTER_LINEAR
    planes = [[cv2.resize(plane, size[::-1], interpolation=method) for plane in image] for image in batch]
    return np.array(planes, np.float32)
