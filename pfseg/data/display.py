"""Images of any number of bands, shown in three."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def displayed(image: np.ndarray, positions: Sequence[int] | None) -> np.ndarray:
    """An image (H, W, C) uint8 as RGB (H, W, 3): the bands at three positions; None: the first three, or grey."""
    count = image.shape[2]
    if positions is None:
        if count == 3:
            return image
        positions = (0, 1, 2) if count > 3 else (0, 0, 0)
    return np.ascontiguousarray(image[..., list(positions)])
