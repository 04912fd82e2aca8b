"""Class probabilities of images of any size: overlapping windows, several scales and mirrored views, averaged.

Pure NumPy around a network that is given as a function.

Shapes: image (3, H, W) float32, normalised (0 is the mean colour); batch (N, 3, h, w); probabilities (N, K, h, w) or
(K, H, W) float32, which sum to 1 over K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import cv2
import numpy as np

from pfseg.data.tiling import Window, windows
from pfseg.errors import ConfigError

Flips = Literal["none", "h", "v", "hv", "d4"]

# (transposed, rows reversed, columns reversed), applied in this order
_VIEWS: dict[str, tuple[tuple[bool, bool, bool], ...]] = {
    "none": ((False, False, False),),
    "h": ((False, False, False), (False, False, True)),
    "v": ((False, False, False), (False, True, False)),
    "hv": tuple((False, rows, columns) for rows in (False, True) for columns in (False, True)),
    "d4": tuple((t, rows, columns) for t in (False, True) for rows in (False, True) for columns in (False, True)),
}


class Inference:
    """Probabilities as the mean of the softmax over all views of a window, blended where windows overlap.

    Each window is resized by every scale (to multiples of `stride`), mirrored in every way, and predicted; logits are
    mirrored and resized back before the softmax. Windows lie at multiples of their step, the last row and column
    shifted back inside the image, and are blended by `blend_weights`. What an image lacks to a window is padded with
    the mean colour at the bottom and right, and cut off again.

    Args:
        predict: maps a normalised batch (N, 3, h, w) float32 to logits (N, K, h, w) float32.
        num_classes: K.
        window: (h, w); None for whole images, padded to a multiple of `stride`.
        overlap: share of a window that the next one covers too, 0 <= overlap < 1.
        scales: factors above 0.
        flips: `none`, `h` (left and right exchanged), `v` (top and bottom), `hv` (both, and half a turn) or `d4` (the
            8 symmetries of a square); each with the unchanged view.
        stride: output stride of the network.
        min_size: smallest side that the network takes.
        batch_size: windows a call of `predict`.

    Raises:
        ConfigError: a value out of its range, or windows that are too small at some scale.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        *,
        num_classes: int,
        window: tuple[int, int] | None = None,
        overlap: float = 0.0,
        scales: Sequence[float] = (1.0,),
        flips: Flips = "none",
        stride: int = 32,
        min_size: int = 1,
        batch_size: int = 1,
    ) -> None:
        check_views(window=window, overlap=overlap, scales=scales, flips=flips, min_size=min_size)
        self.predict, self.num_classes = predict, num_classes
        self.window, self.overlap = window, overlap
        self.scales, self.flips = tuple(scales), flips
        self.stride, self.min_size, self.batch_size = stride, min_size, batch_size

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(K, H, W) float32 of an image (3, H, W) float32; one window alone is returned as it was predicted."""
        shape = (image.shape[1], image.shape[2])
        places = self.windows(shape)
        if len(places) == 1:
            batch = self.padded(image)[None]
            return np.ascontiguousarray(self.window_probabilities(batch)[0, :, : shape[0], : shape[1]])
        blend = Blend(self.num_classes, shape[1])
        for first in range(0, len(places), self.batch_size):
            some = places[first : first + self.batch_size]
            batch = np.stack([self.padded(image[(slice(None), *place.slices)]) for place in some])
            for place, found in zip(some, self.window_probabilities(batch), strict=True):
                blend.add(place, found)
        return blend.take(shape[0])

    def labels(self, image: np.ndarray) -> np.ndarray:
        """Most probable class (H, W) uint8; of one window in one view that of its logits, which is exact."""
        shape = (image.shape[1], image.shape[2])
        if len(self.windows(shape)) * self.views > 1 or self.scales != (1.0,):
            return self.probabilities(image).argmax(0).astype(np.uint8)
        logits = self.predict(self.padded(image)[None])[0, :, : shape[0], : shape[1]]
        return logits.argmax(0).astype(np.uint8)

    @property
    def views(self) -> int:
        """How often each window is predicted."""
        return len(self.scales) * len(_VIEWS[self.flips])

    def windows(self, shape: tuple[int, int]) -> list[Window]:
        """Where an image of this (H, W) is cut, row by row; windows end where the image does."""
        if self.window is None:
            return [Window(0, shape[0], 0, shape[1])]
        height, width = self.window
        return windows(shape, self.window, (_step(height, self.overlap), _step(width, self.overlap)))

    def padded(self, image: np.ndarray) -> np.ndarray:
        """(3, h, w) of an image no larger than the window, or of any size where there is none; 0 is added."""
        height, width = image.shape[1:]
        size = self.window or [max(self.min_size, math.ceil(s / self.stride) * self.stride) for s in (height, width)]
        return np.pad(image, ((0, 0), (0, size[0] - height), (0, size[1] - width)))

    def window_probabilities(self, batch: np.ndarray) -> np.ndarray:
        """(N, K, h, w) float32 of windows (N, 3, h, w) float32: the mean over all scales and flips."""
        total: np.ndarray | None = None
        for logits in self._logits(batch):
            found = softmax(logits)
            total = found if total is None else np.add(total, found, out=total)
        assert total is not None
        return total if self.views == 1 else np.divide(total, self.views, out=total)

    def _logits(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Logits (N, K, h, w) of each view of a batch, turned back."""
        height, width = batch.shape[2:]
        for scale in self.scales:
            scaled = batch if scale == 1 else _resize(batch, (self._scaled(height, scale), self._scaled(width, scale)))
            for view in _VIEWS[self.flips]:
                logits = _restored(self.predict(np.ascontiguousarray(_viewed(scaled, view))), view)
                assert logits.shape == (len(batch), self.num_classes, *scaled.shape[2:])
                yield logits if scale == 1 else _resize(logits, (height, width))

    def _scaled(self, side: int, scale: float) -> int:
        return max(round(side * scale / self.stride) * self.stride, self.stride, self.min_size)


class Blend:
    """Weighted mean of windows that come row by row; only the rows that further windows can reach are kept.

    Args:
        num_classes: K.
        width: W of the image.

    Attributes:
        top: first row that is kept.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        self.top = 0
        self._sum = np.zeros((num_classes, 0, width), np.float32)
        self._weight = np.zeros((0, width), np.float32)

    def add(self, window: Window, probabilities: np.ndarray) -> None:
        """Add a window that starts no higher than the rows already taken.

        Args:
            window: where it lies; its part inside the image.
            probabilities: (K, h, w) of the whole window, which may be larger at the bottom and right.
        """
        assert window.y0 >= self.top, "windows come row by row"
        height, width = window.y1 - window.y0, window.x1 - window.x0
        self._grow(window.y1)
        weight = blend_weights(*probabilities.shape[1:])[:height, :width]
        rows, columns = slice(window.y0 - self.top, window.y1 - self.top), slice(window.x0, window.x1)
        self._sum[:, rows, columns] += probabilities[:, :height, :width] * weight
        self._weight[rows, columns] += weight

    def take(self, bottom: int) -> np.ndarray:
        """Rows [top, bottom) as (K, bottom - top, W) float32, which are then forgotten; `top` becomes `bottom`.

        Pixels that no window has covered are 0.
        """
        self._grow(bottom)
        count = bottom - self.top
        weight = self._weight[:count]
        found = np.divide(self._sum[:, :count], np.where(weight > 0, weight, 1))
        self._sum, self._weight = self._sum[:, count:].copy(), self._weight[count:].copy()
        self.top = bottom
        return found

    def _grow(self, bottom: int) -> None:
        if (missing := bottom - self.top - len(self._weight)) > 0:
            self._sum = np.pad(self._sum, ((0, 0), (0, missing), (0, 0)))
            self._weight = np.pad(self._weight, ((0, missing), (0, 0)))


def check_views(
    *, window: Sequence[int] | None, overlap: float, scales: Sequence[float], flips: str, min_size: int = 1
) -> None:
    """Refuse settings of `Inference` that are out of range.

    Raises:
        ConfigError: names the setting, its value and what is expected.
    """
    if window is not None and min(window) < 1:
        raise ConfigError(f"window={list(window)}: expected a height and a width of at least 1 px")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap={overlap}: expected a share of the window from 0 to below 1, such as 0.5")
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ConfigError(f"scales={list(scales)}: expected one or more numbers above 0, such as [0.75,1,1.25]")
    if flips not in _VIEWS:
        raise ConfigError(f"flips={flips}: expected {' | '.join(_VIEWS)}")
    if window is not None and round(min(window) * min(scales)) < min_size:
        raise ConfigError(
            f"windows of {window[0]}x{window[1]} px at scale {min(scales):g} are too small for this network: it takes "
            f"{min_size} px a side at least: use windows of {math.ceil(min_size / min(scales))} px or larger scales"
        )


def blend_weights(height: int, width: int) -> np.ndarray:
    """Weights (h, w) float32 above 0 that fall smoothly from a window's centre to its edges (a Hann window)."""
    rows, columns = (np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width))
    return np.outer(rows, columns).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K, h, w) of logits (N, K, h, w), over K."""
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.divide(found, found.sum(axis=1, keepdims=True), out=found)


def _step(side: int, overlap: float) -> int:
    return max(1, round(side * (1 - overlap)))


def _viewed(batch: np.ndarray, view: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, rows, columns = view
    batch = batch.swapaxes(2, 3) if transposed else batch
    return batch[:, :, :: -1 if rows else 1, :: -1 if columns else 1]


def _restored(batch: np.ndarray, view: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, rows, columns = view
    batch = batch[:, :, :: -1 if rows else 1, :: -1 if columns else 1]
    return batch.swapaxes(2, 3) if transposed else batch


def _resize(batch: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, C, h, w) to (N, C, *size), pixel centres on the half grid; areas are averaged when it gets smaller."""
    method = cv2.INTER_AREA if size[0] * size[1] < batch.shape[2] * batch.shape[3] else cv2.INTER_LINEAR
    planes = [[cv2.resize(plane, size[::-1], interpolation=method) for plane in image] for image in batch]
    return np.array(planes, np.float32)
