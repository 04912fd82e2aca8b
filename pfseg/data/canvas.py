"""Drawing tools for scenes: colours and textures at random, shapes, shadows.

Units: pixels of about 0.3 m; colours 0..255 RGB; directions in radians. Points are (x, y), as OpenCV takes them.
"""

from __future__ import annotations

import cv2
import numpy as np


class Canvas:
    """An image with its labels, black and 0 at first, `size` S px square; the sun stands anywhere."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.image = np.zeros((size, size, 3), dtype=np.float32)
        self.mask = np.zeros((size, size), dtype=np.uint8)
        self.taken = np.zeros_like(self.mask)  # 1 where nothing further can stand
        self.shade = np.zeros((size, size), dtype=np.float32)  # how much the ground lies in shadow, 0..1
        self.y, self.x = np.mgrid[:size, :size].astype(np.float32)
        sun = rng.uniform(0, 2 * np.pi)
        # (x, y): pixels of shadow that a pixel of height casts
        self.shadow = np.array([np.cos(sun), np.sin(sun)]) * rng.uniform(0.5, 1.1)

    def count(self, mean: float) -> int:
        """A random number of things, of which there are `mean` on 256 x 256 px."""
        return int(self.rng.poisson(mean * (self.size / 256) ** 2))

    def noise(self, cell: float) -> np.ndarray:
        """Smooth noise (S, S) of about unit variance with features of `cell` pixels."""
        side = max(2, round(self.size / cell) + 2)
        coarse = self.rng.standard_normal((side, side), dtype=np.float32)
        return np.asarray(cv2.resize(coarse, (self.size, self.size), interpolation=cv2.INTER_CUBIC))

    def pick(self, table: tuple[tuple[int, int, int], ...], spread: float = 8) -> np.ndarray:
        """A colour of a table, somewhat changed in brightness and hue."""
        colour = np.array(table[self.rng.integers(len(table))], dtype=np.float32)
        return np.clip(colour * self.rng.uniform(0.82, 1.18) + self.rng.normal(0, spread, 3), 12, 245)

    def axes(self, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (S, S) along a direction and across it."""
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        return self.x * cos + self.y * sin, self.y * cos - self.x * sin

    def cast(self, outline: np.ndarray, height: float) -> None:
        """Let the shadow of something upright fall on the ground: the hull of its outline and its top's shadow."""
        hull = cv2.convexHull(np.concatenate([outline, outline + self.shadow * height]).astype(np.float32))
        cv2.fillConvexPoly(self.shade, pixels(hull), (1.0,))

    def claim(self, corners: np.ndarray, margin: float) -> bool:
        """Take the ground of a shape, unless part of it (and of a margin around) is taken already."""
        centre = corners.mean(axis=0)
        grown = centre + (corners - centre) * (1 + margin / np.linalg.norm(corners - centre, axis=1, keepdims=True))
        left, top = np.clip(np.floor(grown.min(axis=0)), 0, self.size - 1).astype(int)
        right, bottom = np.clip(np.ceil(grown.max(axis=0)), 0, self.size - 1).astype(int) + 1
        taken = self.taken[top:bottom, left:right]
        ground = np.zeros_like(taken)
        fill(ground, grown - (left, top), 1)
        if not ground.any() or (ground & taken).any():
            return False
        taken |= ground
        return True


def box(centre: np.ndarray, width: float, depth: float, angle: float) -> np.ndarray:
    """Corners (4, 2) of a rectangle, its width along `angle`, running round it."""
    cos, sin = np.cos(angle) / 2, np.sin(angle) / 2
    axis, across = np.array([cos * width, sin * width]), np.array([-sin * depth, cos * depth])
    return np.asarray(centre + np.stack([-(axis + across), axis - across, axis + across, -(axis - across)]))


def pixels(points: np.ndarray) -> np.ndarray:
    """Round to whole pixels, int32."""
    return np.asarray(np.round(points), dtype=np.int32)


def fill(canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray | int) -> None:
    """Fill a polygon (N, 2) of an image, or of a mask with a label."""
    cv2.fillPoly(canvas, [pixels(outline)], np.atleast_1d(colour).tolist())


def line(canvas: np.ndarray, ends: np.ndarray, colour: np.ndarray | int) -> None:
    """Draw a line 1 px wide between two points (2, 2)."""
    first, last = pixels(ends).tolist()
    cv2.line(canvas, first, last, np.atleast_1d(colour).tolist(), 1)
