"""Networks as functions of NumPy arrays, whose answers are known exactly, in sliding windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from pfseg.inference.sliding import SlidingWindows, WindowGrid
from pfseg.inference.views import Network, Views


def sliding(*networks: Network, **settings: Any) -> SlidingWindows:
    """Networks of two classes on whole images in one view, but for `settings`."""
    plain = {"num_classes": 2, "window": None, "overlap": 0.0, "scales": (1.0,), "flips": "none"}
    given = plain | {"stride": 32, "min_size": 1, "batch_size": 1, "disagreement": False} | settings
    grid = WindowGrid(given["window"], given["overlap"], given["stride"], given["min_size"])
    views = Views(given["scales"], given["flips"], given["stride"], given["min_size"])
    return SlidingWindows(networks, given["num_classes"], grid, views, given["batch_size"], given["disagreement"])


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32)


def pixelwise(batch: np.ndarray) -> np.ndarray:
    """Logits of each pixel from its own colour: the same in every window and mirrored view."""
    return np.stack([batch[:, 0], batch[:, 1] - batch[:, 2]], 1)


def lopsided(batch: np.ndarray) -> np.ndarray:
    """Logits that follow the place in the window: every mirrored view gives others."""
    rows, columns = (np.linspace(-1, 2, side, dtype=np.float32) for side in batch.shape[2:])
    return np.stack([batch[:, 0] * rows[:, None], batch[:, 1] + columns], 1)


def evaluation_settings(**settings: Any) -> dict[str, Any]:
    """Keywords of an evaluator of two classes and whole images, but for `settings`."""
    plain = {"num_classes": 2, "mean": [0.5] * 3, "std": [0.5] * 3, "contrast": None, "window": None, "stride": 32}
    plain |= {"batch_size": 1, "batch_pixels": None, "min_size": 1, "scale": 1.0, "ignore_index": 255}
    return plain | {"num_panels": 99} | settings


class Recorder:
    """`pixelwise`, and the shapes of the batches."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        self.shapes.append(batch.shape)
        return pixelwise(batch)
