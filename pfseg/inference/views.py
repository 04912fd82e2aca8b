"""Several views of each window: scaled and mirrored, predicted, and averaged.

Shapes: batch (N, 3, h, w) float32, normalised; logits and probabilities (N, K, h, w) float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

Flips = Literal["none", "h", "v", "hv", "d4"]
Network = Callable[[np.ndarray], np.ndarray]  # normalised batch -> logits


class Flip(NamedTuple):
    """A mirrored view: axes exchanged, then rows reversed, then columns reversed."""

    transposed: bool
    rows: bool
    columns: bool

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """The view of a batch."""
        batch = batch.swapaxes(2, 3) if self.transposed else batch
        return batch[:, :, :: -1 if self.rows else 1, :: -1 if self.columns else 1]

    def undo(self, batch: np.ndarray) -> np.ndarray:
        """The batch of a view."""
        batch = self._replace(transposed=False).apply(batch)
        return batch.swapaxes(2, 3) if self.transposed else batch


_NO, _BOTH = (False,), (False, True)
_FLIPS = {
    name: tuple(itertools.starmap(Flip, itertools.product(*axes)))
    for name, axes in {
        "none": (_NO, _NO, _NO),
        "h": (_NO, _NO, _BOTH),
        "v": (_NO, _BOTH, _NO),
        "hv": (_NO, _BOTH, _BOTH),
        "d4": (_BOTH, _BOTH, _BOTH),
    }.items()
}


@dataclass(frozen=True)
class Views:
    """Views of a window whose probabilities are averaged.

    A window is resized by every scale (to multiples of `stride`), mirrored in every way, and predicted; logits are
    mirrored and resized back before the softmax.

    Flips are `none`, `h` (left and right exchanged), `v` (top and bottom), `hv` (both, and half a turn) or `d4` (the 8
    symmetries of a square); each with the unchanged view.
    """

    scales: Sequence[float]
    flips: Flips
    stride: int  # output stride of the network
    min_size: int  # smallest side that the network takes

    def __len__(self) -> int:
        """How often each window is predicted."""
        return len(self.scales) * len(_FLIPS[self.flips])

    @property
    def plain(self) -> bool:
        """Whether the unchanged view is the only one."""
        return len(self) == 1 and self.scales[0] == 1

    def probabilities(self, network: Network, batch: np.ndarray) -> Iterator[np.ndarray]:
        """(N, K, h, w) of a batch in each view."""
        return map(softmax, self._logits(network, batch))

    def _logits(self, network: Network, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Logits of each view, turned back."""
        height, width = batch.shape[2:]
        for scale in self.scales:
            rows, columns = (
                max(round(side * scale / self.stride) * self.stride, self.stride, self.min_size)
                for side in (height, width)
            )
            scaled = batch if scale == 1 else _resize(batch, (rows, columns))
            for flip in _FLIPS[self.flips]:
                logits = flip.undo(network(np.ascontiguousarray(flip.apply(scaled))))
                yield logits if scale == 1 else _resize(logits, (height, width))


def labels(network: Network, batch: np.ndarray) -> np.ndarray:
    """Most probable class (N, h, w) uint8, the first of equals; a network that can tell keeps logits on its device."""
    told = getattr(network, "labels", None)
    found: np.ndarray = told(batch) if told else network(batch).argmax(1).astype(np.uint8)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, over K."""
    probabilities: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def _resize(batch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, C, h, w) to (N, C, *size), pixel centres on the half grid; areas are averaged when it gets smaller."""
    method = cv2.INTER_AREA if size[0] * size[1] < batch.shape[2] * batch.shape[3] else cv2.INTER_LINEAR
    planes = [[cv2.resize(plane, size[::-1], interpolation=method) for plane in image] for image in batch]
    return np.array(planes, np.float32)
