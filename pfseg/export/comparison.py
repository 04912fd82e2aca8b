"""How closely an exported network agrees with the one that it was made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfseg.inference.views import softmax

_TIE = 1e-4  # of the range of the logits: closer ones may come in either order
_LEAST = 1e-30  # as `pfseg.inference.onnx_network` has it


class Agreement(NamedTuple):
    """Agreement of logits that may differ by a constant at each pixel.

    Attributes:
        deviation: largest difference of log probabilities, relative to the range of the logits.
        same: share of the pixels with the same most probable class, or with a tie between the two.
    """

    deviation: float
    same: float


def compare(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Compare logits (N, K, H, W) with those expected."""
    scale = float(np.ptp(expected)) or 1.0
    first, second = (np.log(np.maximum(softmax(logits.astype(np.float64)), _LEAST)) for logits in (expected, found))
    labels = second.argmax(1)
    chosen = np.take_along_axis(first, labels[:, None], 1)[:, 0]
    ties = first.max(1) - chosen <= _TIE * scale
    return Agreement(float(np.abs(first - second).max()) / scale, float(ties.mean()))
