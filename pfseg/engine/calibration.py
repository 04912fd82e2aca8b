"""Temperature scaling: the logits of some pixels of each image, and what they say about the probabilities.

Shapes: n pixels of an image, K classes; logits (n, K) float32; labels (n,) uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfseg.data.base import Sample
from pfseg.engine.evaluator import Evaluator
from pfseg.errors import DataError
from pfseg.inference.sliding import most_probable
from pfseg.metrics.calibration import Calibration, calibration, fit_temperature

_PIXELS = 2_000_000  # in all, at most
_OF_AN_IMAGE = 50_000


class Calibrated(NamedTuple):
    """A temperature, fitted on one half of the images and measured on the other."""

    temperature: float
    before: Calibration  # with a temperature of 1
    after: Calibration
    fitted_on: int  # images
    measured_on: int

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return self._asdict() | {"before": self.before.dump(), "after": self.after.dump()}


@dataclass(eq=False, kw_only=True)
class CalibratingEvaluator(Evaluator):
    """Keeps the logits of some labelled pixels of each image, at the size of its mask."""

    kept: dict[str, np.ndarray] = field(default_factory=dict)  # by the image's name: (n, K + 1), logits and label

    def __post_init__(self) -> None:
        """Ask for logits instead of labels."""
        super().__post_init__()
        self.wants_logits = True
        self._most = min(_OF_AN_IMAGE, max(1000, _PIXELS // max(1, len(self.loader.dataset))))

    def save(self, path: Path) -> None:
        """Write what is kept to an .npz file, for rank 0 to read."""
        np.savez(path, **{str(number): array for number, array in enumerate(self.kept.values())}, names=[*self.kept])

    def merge(self, path: Path) -> None:
        """Include what another rank has saved."""
        with np.load(path, allow_pickle=False) as file:
            self.kept |= {str(name): file[str(number)] for number, name in enumerate(file["names"])}

    def _labels(self, result: np.ndarray, sample: Sample) -> np.ndarray:
        planes = self._at_full_size(result, sample)
        labelled = np.flatnonzero(sample.mask.ravel() != self.ignore_index)
        some = labelled[np.linspace(0, len(labelled) - 1, min(self._most, len(labelled))).astype(int)]
        if len(some):
            logits = planes.reshape(len(planes), -1)[:, some].T
            self.kept[sample.name] = np.column_stack([logits, sample.mask.ravel()[some]]).astype(np.float32)
        return most_probable(planes)


def calibrate(kept: Mapping[str, np.ndarray]) -> Calibrated:
    """Fit a temperature on every other image by name, and measure it on the others; raises DataError for one image."""
    if len(kept) < 2:
        raise DataError(
            f"calibrate=true found {len(kept)} images with labelled pixels; it needs two or more, one half to fit the "
            "temperature on and one to measure it on (config: split, dataset.root)"
        )
    names = sorted(kept)
    (logits, labels), measured = (_joined([kept[name] for name in names[start::2]]) for start in (0, 1))
    temperature = fit_temperature(logits, labels)
    before, after = (calibration(*measured, value) for value in (1.0, temperature))
    return Calibrated(temperature, before, after, len(names[::2]), len(names[1::2]))


def _joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    every = np.concatenate(parts)
    return every[:, :-1], every[:, -1].astype(np.int64)
