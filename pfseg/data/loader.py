"""Batches for training and whole samples for validation, prepared by worker processes.

Shapes: image (B, C, h, w) float32, normalised; mask (B, h, w) int32, labels or `ignore_index`; edge (B, h, w) float32,
0 or 1. Everything is NumPy: the trainer hands it to Jittor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import numpy as np

from pfseg.data.base import IGNORE, Sample, SegmentationDataset
from pfseg.data.cache import cached_array, key_of
from pfseg.data.making import SampleMaker, SampleReader, SampleTask, TrainingSample
from pfseg.data.normalise import Normalise
from pfseg.data.sampling import TILE, ClassIndex, Draw, draw_partner, epoch_order
from pfseg.data.transforms import Augment
from pfseg.data.workers import Workers
from pfseg.errors import DataError

_BATCHES_AHEAD = 2
ProgressCallback = Callable[[int, int], None]


@dataclass(kw_only=True, eq=False)
class _Loader:
    """Loading processes of a data set, and its warnings."""

    dataset: SegmentationDataset
    rank: int
    world_size: int
    workers: int  # loading processes; 0 loads in this one

    def _prepare(self, job: SampleReader) -> None:
        self._workers = Workers(job, self.workers)
        self._warnings: dict[str, tuple[str, bool]] = {}  # each (kind) once, and whether it was handed out
        self._warn(self.dataset.warnings)
        self.dataset.warnings.clear()

    def pop_warnings(self) -> list[str]:
        """Faults worked around since the last call; each is reported once per run."""
        new = [text for text, handed_out in self._warnings.values() if not handed_out]
        self._warnings = {kind: (text, True) for kind, (text, _) in self._warnings.items()}
        return new

    def close(self) -> None:
        """End the loading processes."""
        self._workers.close()

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._warnings.setdefault(getattr(warning, "kind", warning), (warning, False))


@dataclass(kw_only=True, eq=False)
class TrainLoader(_Loader):
    """Batches of one rank, shuffled and augmented; the same for every number of workers.

    The sample at position p of an epoch draws its randomness from `default_rng([seed, epoch, p])`. All ranks have the
    same number of `batches_per_epoch`; `worker_mib` is the largest memory that a loading process of this rank has used
    so far, in MiB (None without any).
    """

    augment: Augment
    crop_size: tuple[int, int]  # (h, w) of every sample
    batch_size: int  # of this rank
    seed: int  # of the run
    mean: Sequence[float]  # per channel, of images scaled to 0..1
    std: Sequence[float]
    edge_rule: str  # see `pfseg.data.edges.edge_map`
    edge_thickness: int
    ignore_index: int  # label of pixels without a class in the batches
    scale: float  # factor that images and masks are resized by before augmentation
    class_uniform: float  # share of samples drawn class by class
    multiple: int  # the number of batches is a multiple of it (gradient accumulation)

    def __post_init__(self) -> None:
        """Processes start with the first epoch."""
        if not len(self.dataset):
            raise DataError("the training split is empty; nothing can be trained (config: dataset)")
        edges = self.edge_rule, self.edge_thickness
        self._prepare(SampleMaker(self.dataset, self.augment, self.crop_size, self.seed, *edges, self.scale))
        self._normalise = Normalise(self.mean, self.std)
        self._mix_share = getattr(self.augment, "cutmix", 0.0)  # an augmentation of the user's own may have none
        self._class_index: ClassIndex | None = None
        self.worker_mib: int | None = None
        self.batches_per_epoch = len(self._order(0)) // (self.batch_size * self.world_size)

    def epoch(self, epoch: int, start: int = 0, progress: ProgressCallback | None = None) -> Iterator[dict[str, Any]]:
        """Yield this rank's batches of one epoch.

        Args:
            epoch: counted from 0.
            start: number of batches to leave out, to continue in the middle of an epoch.
            progress: called with (samples done, samples in all) while the places of each class are located, in the
                first class-uniform epoch on a data set.

        Yields:
            `image`, `mask`, `edge` (see the head of this module) and `name`, a list of B names.

        Raises:
            DataError: a sample cannot be read (and `on_error` is `raise`), or a worker was killed.
        """
        order = self._order(epoch)
        draws = [Draw(int(index)) for index in order]
        if self.class_uniform:
            draws = self._index(progress).draw(order, share=self.class_uniform, seed=self.seed, epoch=epoch)
        firsts = (
            (batch * self.world_size + self.rank) * self.batch_size for batch in range(start, self.batches_per_epoch)
        )
        positions = (position for first in firsts for position in range(first, first + self.batch_size))
        mix = partial(draw_partner, draws, share=self._mix_share, seed=self.seed, epoch=epoch)
        tasks = (SampleTask(epoch, position, draws[position], mix(position)) for position in positions)
        samples: list[TrainingSample] = []
        for sample in self._workers.map(tasks, ahead=_BATCHES_AHEAD * self.batch_size):
            self._warn(sample.warnings)
            if self.workers:
                self.worker_mib = max(self.worker_mib or 0, sample.mib)
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield self._collate(samples)
                samples = []

    def _order(self, epoch: int) -> np.ndarray:
        shape = {"batch": self.batch_size, "world_size": self.world_size, "multiple": self.multiple}
        return epoch_order(len(self.dataset), seed=self.seed, epoch=epoch, **shape)

    def _index(self, progress: ProgressCallback | None = None) -> ClassIndex:
        if self._class_index is None:
            key = self.dataset.mask_key()
            folders = [] if key is None else self.dataset.cache_folders()
            table = cached_array(folders, f"classes-{key_of(key, TILE)}", lambda: self._locate_classes(progress))
            self._class_index = ClassIndex(self.dataset.num_classes, table)
        return self._class_index

    def _locate_classes(self, progress: ProgressCallback | None) -> np.ndarray:
        """Sample, label, y and x of the places of all classes, (N, 4) int32."""
        rows: list[tuple[int, int, int, int]] = []
        results = self._workers.map(range(len(self.dataset)), ahead=4 * max(1, self.workers))
        for sample, (centres, warnings) in enumerate(results):
            self._warn(warnings)
            rows += [(sample, *centre) for centre in centres]
            if progress:
                progress(sample + 1, len(self.dataset))
        return np.array(rows, np.int32).reshape(-1, 4)

    def _collate(self, samples: list[TrainingSample]) -> dict[str, Any]:
        image = np.empty((len(samples), len(self.mean), *self.crop_size), dtype=np.float32)
        for planes, sample in zip(image, samples, strict=True):
            self._normalise(sample.image, planes)
        mask = np.stack([sample.mask for sample in samples], dtype=np.int32)
        if self.ignore_index != IGNORE:
            mask[mask == IGNORE] = self.ignore_index
        edge = np.stack([sample.edge for sample in samples], dtype=np.float32)
        return {"image": image, "mask": mask, "edge": edge, "name": [sample.name for sample in samples]}


@dataclass(kw_only=True, eq=False)
class EvalLoader(_Loader):
    """Whole samples, each once over all ranks; `skipped` counts those of the last pass that could not be read."""

    order: InitVar[Sequence[int] | None] = None  # indices of this rank's samples; None: rank, rank + world_size, ...

    def __post_init__(self, order: Sequence[int] | None) -> None:
        """Processes start with the first pass."""
        self._prepare(SampleReader(self.dataset))
        self.indices = range(self.rank, len(self.dataset), self.world_size) if order is None else order
        self.skipped = 0

    def __len__(self) -> int:
        """Number of samples of this rank, unreadable ones included."""
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        """Yield (index, sample) in the order of `indices`; raises DataError as `TrainLoader.epoch` does."""
        self.skipped = 0
        results = self._workers.map(self.indices, ahead=self.workers + 1)
        for index, (sample, warnings) in zip(self.indices, results, strict=True):
            self._warn(warnings)
            if sample is None:
                self.skipped += 1
            else:
                yield index, sample
