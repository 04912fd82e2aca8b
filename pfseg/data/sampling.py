"""Which sample comes when: pure functions of seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfseg.data.base import IGNORE

# Fourth word of the seed, which is 0 for the samples: they use [seed, epoch, position].
_ORDER, _CLASSES, _MIX = 1, 2, 3
MIXED = 4  # of the sample that CutMix takes a part from
TILE = 1024


@dataclass(frozen=True)
class Draw:
    """Where a training sample comes from."""

    index: int  # of the data set
    centre: tuple[int, int] | None = None  # (y, x) in pixels of the full-size image that the crop must contain


def epoch_order(
    num_samples: int, *, seed: int, epoch: int, batch: int, world_size: int = 1, multiple: int = 1
) -> np.ndarray:
    """Shuffled sample indices of one epoch for all ranks together.

    The order is padded by wrapping round, so that every rank has the same number of whole batches. Position
    `(step * world_size + rank) * batch + slot` belongs to `slot` of that rank's batch: the samples of a step
    depend on the global batch only, not on how ranks share it. The result is (N,) int64, N a multiple of
    `batch * world_size * multiple`; `multiple` is for gradient accumulation.
    """
    order = np.random.default_rng([seed, epoch, 0, _ORDER]).permutation(num_samples)
    whole = batch * world_size * multiple
    return np.resize(order, -(-num_samples // whole) * whole)


class ClassIndex:
    """Where each class occurs, for class-uniform sampling.

    The `table` (N, 4) holds sample, label, y and x of each place, see `class_centres`.
    """

    def __init__(self, num_classes: int, table: np.ndarray) -> None:
        self.places = [table[table[:, 1] == label] for label in range(num_classes)]

    def draw(self, order: np.ndarray, *, share: float, seed: int, epoch: int) -> list[Draw]:
        """Replace a share of an epoch's `order` by samples drawn class by class.

        The drawn ones name the pixel that the crop must contain, and every class that occurs gets equally many of them
        (give or take one).
        """
        draws = [Draw(int(index)) for index in order]
        present = [places for places in self.places if len(places)]
        if not present:
            return draws
        rng = np.random.default_rng([seed, epoch, 0, _CLASSES])
        positions = rng.permutation(len(order))[: round(share * len(order))]
        for turn, position in enumerate(positions):
            places = present[turn % len(present)]
            index, _, y, x = places[rng.integers(len(places))].tolist()
            draws[position] = Draw(index, (y, x))
        return draws


def draw_partner(draws: Sequence[Draw], position: int, *, share: float, seed: int, epoch: int) -> Draw | None:
    """Another draw of the epoch to mix into the sample at `position` (CutMix), for a share of the positions."""
    rng = np.random.default_rng([seed, epoch, position, _MIX])
    return draws[rng.integers(len(draws))] if rng.random() < share else None


def class_centres(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """Per tile of 1024 px and label: the label and the y and x of its pixel nearest to its centroid in the tile."""
    centres = []
    for top in range(0, mask.shape[0], TILE):
        for left in range(0, mask.shape[1], TILE):
            tile = mask[top : top + TILE, left : left + TILE]
            for label in np.flatnonzero(np.bincount(tile.ravel(), minlength=256)[:IGNORE]):
                y, x = np.nonzero(tile == label)
                nearest = int(np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2))
                centres.append((int(label), top + int(y[nearest]), left + int(x[nearest])))
    return centres
