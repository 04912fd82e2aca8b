"""Class probabilities of images of any size: overlapping windows in several views, averaged.

Shapes: image (3, H, W) float32, normalised (0 is the mean colour); probabilities (K, H, W) float32, which sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pfseg.data.tiling import Window, windows
from pfseg.errors import ConfigError
from pfseg.inference.blending import Blender
from pfseg.inference.certainty import entropy
from pfseg.inference.views import Network, Views


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


@dataclass(frozen=True)
class SlidingWindows:
    """Predicts images in windows: the mean over all networks and views.

    Raises:
        ConfigError: windows are too small for the network at some scale.
    """

    networks: Sequence[Network]
    num_classes: int
    grid: WindowGrid
    views: Views
    batch_size: int  # windows a call of a network
    disagreement: bool = False  # whether one more plane follows those of the classes, see `window_probabilities`

    def __post_init__(self) -> None:
        """Check the size of the windows."""
        window, scale, least = self.grid.size, min(self.views.scales), self.views.min_size
        if window is not None and round(min(window) * scale) < least:
            raise ConfigError(
                f"windows of {window[0]}x{window[1]} px at scale {scale:g} are too small for this network: it takes "
                f"{least} px a side at least: use windows of {math.ceil(least / scale)} px or larger scales"
            )

    @property
    def planes(self) -> int:
        """K, and one more for the disagreement."""
        return self.num_classes + self.disagreement

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Planes (K, H, W) of an image, see `window_probabilities`; of a single window as it was predicted."""
        height, width = image.shape[1:]
        places = self.grid.windows((height, width))
        if len(places) == 1:
            (planes,) = self.window_probabilities([self.grid.pad(image)])
            return np.ascontiguousarray(planes[:, :height, :width])
        whole = np.empty((self.planes, height, width), np.float32)
        blender, parts = Blender(self.planes, (height, width), places), self._batched(image, places)
        for row in blender.rows:
            for block, mean in blender.add(row, parts):
                whole[:, *block.slices] = mean
        return whole

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Most probable class (H, W) uint8; of one window in one view that of its logits, which is exact."""
        height, width = image.shape[1:]
        if len(self.grid.windows((height, width))) > 1 or not self.views.plain or len(self.networks) > 1:
            return most_probable(self.probabilities(image))
        return most_probable(self.networks[0](self.grid.pad(image)[None])[0, :, :height, :width])

    def window_probabilities(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        """(N, K, h, w) of padded windows (C, h, w); with `disagreement` (N, K + 1, h, w).

        The last plane then is how much networks and views differ: the entropy of their mean minus the mean of their
        entropies, 0 where all say the same, 1 where each is sure of another class.
        """
        batch, count = np.stack(windows), len(self.networks) * len(self.views)
        every = (found for network in self.networks for found in self.views.probabilities(network, batch))
        total = next(every)
        apart = -entropy(total) if self.disagreement else None
        for found in every:
            total += found
            if apart is not None:
                apart -= entropy(found)
        if count > 1:
            np.divide(total, count, out=total)
        if apart is None:
            return total
        apart = np.maximum(apart / count + entropy(total), 0)[:, None]
        return np.concatenate([total, apart], axis=1, dtype=np.float32)

    def _batched(self, image: np.ndarray, places: Sequence[Window]) -> Iterator[np.ndarray]:
        for first in range(0, len(places), self.batch_size):
            some = places[first : first + self.batch_size]
            yield from self.window_probabilities([self.grid.pad(image[:, *place.slices]) for place in some])


def most_probable(planes: np.ndarray) -> np.ndarray:
    """Class (H, W) uint8 of the largest logit or probability (K, H, W)."""
    labels: np.ndarray = planes.argmax(0).astype(np.uint8)
    return labels
