"""Mean, spread and paired differences of scores over seeds, with intervals from Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Scores of repeated runs: their number, mean, and standard deviation of the sample (None of a single one)."""

    n: int
    mean: float
    std: float | None

    def __format__(self, form: str) -> str:
        """Mean ± standard deviation, each number in a format such as `.2f`."""
        return format(self.mean, form) + (f" ± {self.std:{form}}" if self.std is not None else "")


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of (second - first), the half width of its 95 % interval, and the number of seeds in common."""

    n: int
    mean: float
    half_width: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half_width


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation, with n - 1 below the square root, of at least one value."""
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """Compare scores by seed over the seeds that both have, by the paired t test; None with fewer than two of them."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    differences = spread([second[seed] - first[seed] for seed in seeds])
    assert differences.std is not None, "two values have a standard deviation"
    half_width = t_quantile(differences.n - 1, _CONFIDENCE) * differences.std / math.sqrt(differences.n)
    return Difference(differences.n, differences.mean, half_width)


def t_quantile(freedom: int, confidence: float) -> float:
    """The t that Student's distribution stays within, on both sides, with probability `confidence` in (0, 1).

    The probability is a finite sum in the angle atan(t / sqrt(freedom)) (Abramowitz and Stegun 26.7.3 and 26.7.4),
    which is inverted by halving an interval.
    """
    odd = freedom % 2

    def probability(angle: float) -> float:
        sine, cosine = math.sin(angle), math.cos(angle)
        term = cosine if odd else 1.0
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return 2 / math.pi * (angle + sine * total) if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
