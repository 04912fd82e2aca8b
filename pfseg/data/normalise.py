"""From 8-bit pixels to what networks read.

Shapes: image (H, W, C) uint8; planes (C, H, W) float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


class Normalise:
    """Map 0..255 to (value / 255 - mean) / std per channel, mean and std being those of images scaled to 0..1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        deviation = np.asarray(std, np.float64)
        self._scale = (1 / (255 * deviation)).astype(np.float32)
        self._shift = (-np.asarray(mean, np.float64) / deviation).astype(np.float32)

    def __call__(self, image: np.ndarray, out: np.ndarray) -> None:
        """Write the planes of an image (H, W, C) uint8 into `out` (C, H, W) float32."""
        for plane, scale, shift, target in zip(cv2.split(image), self._scale, self._shift, out, strict=True):
            np.multiply(plane, scale, out=target)
            target += shift
