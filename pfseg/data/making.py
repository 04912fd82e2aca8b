"""The work of the loading processes: reading samples, making training samples of them, and locating classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pfseg.data.base import Sample, SegmentationDataset
from pfseg.data.edges import edge_map
from pfseg.data.sampling import MIXED, Draw, class_centres
from pfseg.data.transforms import Augment, paste, rescale
from pfseg.data.workers import peak_mib
from pfseg.errors import DataError, PfsegError, unforeseen

Read = TypeVar("Read")


@dataclass(frozen=True)
class SampleTask:
    """A training sample to be made: its epoch, its position there, its draw, and the draw to mix into it."""

    epoch: int
    position: int
    draw: Draw
    partner: Draw | None


@dataclass
class TrainingSample:
    """A training sample, with reports of the process that made it."""

    image: np.ndarray  # (h, w, 3) uint8
    mask: np.ndarray  # (h, w) uint8, labels or 255
    edge: np.ndarray  # (h, w) uint8, 0 or 1
    name: str  # of the data set's sample
    warnings: list[str]  # faults worked around
    mib: int  # the largest memory that the process has used so far


@dataclass
class SampleReader:
    """Reads samples of a data set, by the data set's own rule for faults."""

    dataset: SegmentationDataset

    def __call__(self, index: int) -> tuple[Sample | None, list[str]]:
        """Read one sample, None if it is left out; and the warnings."""
        return self._try(self.dataset.read, index), self._pop_warnings()

    def _try(self, read: Callable[[int], Read], index: int) -> Read | None:
        try:
            return read(index)
        except DataError as error:
            self.dataset.leave_out(error)
        except Exception as error:
            if isinstance(error, PfsegError) or self.dataset.on_error != "skip":
                raise
            self.dataset.leave_out(DataError(unforeseen(f"sample {index}", error)))
        return None

    def _pop_warnings(self) -> list[str]:
        warnings = list(self.dataset.warnings)
        self.dataset.warnings.clear()
        return warnings


@dataclass
class SampleMaker(SampleReader):
    """Makes training samples (from a `SampleTask`) and locates classes (in the sample of a plain index).

    A data set that skips faults continues with the next sample that can be read.
    """

    augment: Augment
    crop_size: tuple[int, int]
    seed: int
    edge_rule: str
    edge_thickness: int
    scale: float

    def __call__(self, task: SampleTask | int) -> Any:
        """A `TrainingSample`; of an index, the places of its classes and the warnings."""
        if isinstance(task, int):
            mask = self._try(self.dataset.read_mask, task)
            return [] if mask is None else class_centres(mask), self._pop_warnings()
        place = [self.seed, task.epoch, task.position]
        image, mask, name = self._augmented(task.draw, np.random.default_rng(place))
        if task.partner is not None:
            rng = np.random.default_rng([*place, MIXED])
            image, mask = paste((image, mask), self._augmented(task.partner, rng)[:2], rng)
        edge = edge_map(mask, rule=self.edge_rule, thickness=self.edge_thickness)
        return TrainingSample(image, mask, edge, name, self._pop_warnings(), peak_mib())

    def _augmented(self, draw: Draw, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
        sample, centre = self._next_readable(draw)
        image, mask = sample.image, sample.mask
        if self.scale != 1:
            image, mask = rescale(image, mask, self.scale)
            if centre is not None:
                y, x = (min(int(at * self.scale), side - 1) for at, side in zip(centre, mask.shape, strict=True))
                centre = (y, x)
        image, mask = self.augment(image, mask, rng, self.crop_size, centre=centre)
        return image, mask, sample.name

    def _next_readable(self, draw: Draw) -> tuple[Sample, tuple[int, int] | None]:
        size = len(self.dataset)
        for step in range(size):
            sample = self._try(self.dataset.read, (draw.index + step) % size)
            if sample is not None:
                return sample, draw.centre if step == 0 else None
        raise DataError(f"none of the {size} samples can be read; the last: {self._pop_warnings()[-1]}")
