"""Whether probabilities can be believed: of pixels predicted with 80 %, 80 % should be right.

Temperature scaling and the expected calibration error follow Guo et al., "On Calibration of Modern Neural Networks"
(ICML 2017).

Shapes: N pixels, K classes; logits (N, K) float32; labels (N,) in [0, K).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 15
_RANGE = (0.05, 20.0)  # of temperatures
_STEPS = 40  # of the golden section, which narrow the range to 1e-8 of it
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of some pixels fit what is right.

    Attributes:
        ece: expected calibration error in percent: mean distance of confidence and accuracy over `BINS` bins of equal
            width, weighted by their pixels.
        nll: mean negative log-likelihood of the right class, in nats.
        brier: mean squared distance of the probabilities from 1 for the right class and 0 for the others, 0..2.
        pixels: number in each bin.
        confidence: mean probability of the predicted class in each bin, 0 for an empty one.
        accuracy: share that is right in each bin, likewise.
    """

    ece: float
    nll: float
    brier: float
    pixels: list[int]
    confidence: list[float]
    accuracy: list[float]

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Calibration:
    """Measure the probabilities softmax(logits / temperature) of at least one pixel."""
    log_probabilities = _log_softmax(logits / np.float32(temperature))
    probabilities, rows = np.exp(log_probabilities), np.arange(len(labels))
    pred, top = probabilities.argmax(axis=1), probabilities.max(axis=1)
    bins = np.minimum((top * BINS).astype(int), BINS - 1)
    pixels = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights=weights, minlength=BINS) for weights in (top, pred == labels))
    confidence, accuracy = (part / np.maximum(1, pixels) for part in sums)
    truth = probabilities[rows, labels]
    return Calibration(
        ece=float(100 * (np.abs(confidence - accuracy) * pixels).sum() / len(labels)),
        nll=float(-log_probabilities[rows, labels].mean(dtype=np.float64)),
        brier=float(((probabilities**2).sum(axis=1) - 2 * truth + 1).mean(dtype=np.float64)),
        pixels=pixels.tolist(),
        confidence=confidence.tolist(),
        accuracy=accuracy.tolist(),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which logits are to be divided for the least negative log-likelihood, from 0.05 to 20.

    The likelihood has one maximum, since it is concave in 1 / temperature.
    """
    rows = np.arange(len(labels))

    def loss(place: float) -> float:
        return float(-_log_softmax(logits / np.float32(np.exp(place)))[rows, labels].mean(dtype=np.float64))

    low, high = np.log(_RANGE)
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_inner, at_outer = loss(inner), loss(outer)
    for _ in range(_STEPS):
        if at_inner < at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - _GOLDEN * (high - low)
            at_inner = loss(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + _GOLDEN * (high - low)
            at_outer = loss(outer)
    return float(np.exp((low + high) / 2))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
