"""The boundary scores as their definitions say, slowly: class by class, a disk drawn pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def boundary(held: np.ndarray) -> np.ndarray:
    """The published boundary of a binary mask (H, W) bool."""
    height, width = held.shape
    found = np.zeros_like(held)
    for y in range(height):
        for x in range(width):
            down, right = y + 1 < height, x + 1 < width
            others = [(y, x + 1)] if right else []
            others += [(y + 1, x)] if down else []
            others += [(y + 1, x + 1)] if down and right else []
            found[y, x] = any(held[other] != held[y, x] for other in others)
    return found


def near(points: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within `radius` of a point, by stamping a disk."""
    height, width = points.shape
    result = np.zeros_like(points)
    rows, columns = np.mgrid[:height, :width]
    for y, x in zip(*np.nonzero(points), strict=True):
        result |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return result


def f_score(pred: np.ndarray, mask: np.ndarray, label: int, threshold: float) -> float:
    """F-score of one class of one image; NaN if it is in neither map. Ignored pixels are 255 in both."""
    held = [part == label for part in (pred, mask)]
    if not held[0].any() or not held[1].any():
        return 0.0 if held[0].any() or held[1].any() else math.nan
    radius = math.ceil(threshold * math.hypot(*mask.shape))
    edges = [boundary(part) for part in held]
    sizes = [int(edge.sum()) for edge in edges]
    if 0 in sizes:
        return float(sizes == [0, 0])
    precision = (edges[0] & near(edges[1], radius)).sum() / sizes[0]
    recall = (edges[1] & near(edges[0], radius)).sum() / sizes[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def band(held: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a binary mask that a square of `width` around them leaves, as outside the image is no mask."""
    found = np.zeros_like(held)
    padded = np.pad(held, width)
    for y, x in zip(*np.nonzero(held), strict=True):
        found[y, x] = not padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return found


def iou_parts(pred: np.ndarray, mask: np.ndarray, label: int, ratio: float) -> tuple[int, int]:
    """Pixels of intersection and union of both bands of a class."""
    width = max(1, round(ratio * math.hypot(*mask.shape)))
    first, second = band(pred == label, width), band(mask == label, width)
    return int((first & second).sum()), int((first | second).sum())
