"""How sure a prediction is, from its probabilities: (..., K, h, w) float32, which sum to 1 over the K classes.

Every measure is from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Measure = Callable[[np.ndarray], np.ndarray]


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """Probability of the most probable class (..., h, w)."""
    return np.asarray(probabilities.max(axis=-3))


def margin(probabilities: np.ndarray) -> np.ndarray:
    """By how much the most probable class leads (..., h, w); the confidence itself of a single class."""
    if probabilities.shape[-3] == 1:
        return confidence(probabilities)
    ordered = np.partition(probabilities, -2, axis=-3)
    return np.asarray(ordered[..., -1, :, :] - ordered[..., -2, :, :])


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Shannon's entropy (..., h, w) as a share of the largest possible, log K: 1 where all classes are as probable."""
    terms = probabilities * np.log(np.maximum(probabilities, 1e-12))
    return np.asarray(-terms.sum(axis=-3) / np.log(max(2, probabilities.shape[-3])))


MEASURES: dict[str, Measure] = {"confidence": confidence, "entropy": entropy, "margin": margin}
