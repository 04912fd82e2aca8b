"""Batches for training and whole samples for validation, prepared by worker processes.

Shapes: image (B, 3, h, w) float32, normalised; mask (B, h, w) int32, labels or `ignore_index`; edge (B, h, w) float32,
0 or 1. Everything is NumPy: the trainer hands it to Jittor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfseg.data.base import IGNORE, Sample, SegmentationDataset
from pfseg.data.cache import cached_array, key_of
from pfseg.data.edges import edge_map
from pfseg.data.normalise import Normalise
from pfseg.data.sampling import MIXED, TILE, ClassIndex, Draw, class_centres, draw_partner, epoch_order
from pfseg.data.transforms import Augment, paste, rescale
from pfseg.data.workers import Workers, peak_mib
from pfseg.errors import ConfigError, DataError

_BATCHES_AHEAD = 2
ProgressCallback = Callable[[int, int], None]


class TrainLoader:
    """Batches of one rank, shuffled and augmented; the same for every number of workers.

    The sample at position p of an epoch draws its randomness from `default_rng([seed, epoch, p])`.

    Args:
        dataset: what to read; pickled to the workers once.
        augment: joint augmentation.
        crop_size: (h, w) of every sample.
        batch_size: of this rank.
        seed: of the run.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
        edge_rule: see `pfseg.data.edges.edge_map`.
        edge_thickness: in px.
        ignore_index: label of pixels without a class in the batches.
        scale: factor that images and masks are resized by before augmentation.
        class_uniform: share of samples drawn class by class.
        rank: of this process.
        world_size: number of ranks.
        workers: loading processes; 0 loads in this one.
        multiple: the number of batches is made a multiple of it.

    Attributes:
        batches_per_epoch: of this rank, the same for all ranks.
        worker_mib: largest memory that a loading process of this rank has used so far, in MiB; None without any.
    """

    def __init__(
        self,
        *,
        dataset: SegmentationDataset,
        augment: Augment,
        crop_size: tuple[int, int],
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        edge_rule: str,
        edge_thickness: int,
        ignore_index: int,
        scale: float,
        class_uniform: float,
        rank: int,
        world_size: int,
        workers: int,
        multiple: int,
    ) -> None:
        """Keep the settings; processes start with the first epoch."""
        if not len(dataset):
            raise DataError("the training split is empty; nothing can be trained (config: dataset)")
        if not 0 <= class_uniform <= 1:
            raise ConfigError(f"class_uniform={class_uniform} is not between 0 and 1 (config: dataset.class_uniform)")
        edge_map(np.zeros((1, 1), np.uint8), rule=edge_rule, thickness=edge_thickness)  # a wrong rule fails here
        self.dataset, self.batch_size, self.crop_size, self.seed = dataset, batch_size, crop_size, seed
        self.rank, self.world_size, self.multiple = rank, world_size, multiple
        self.class_uniform, self.ignore_index = class_uniform, ignore_index
        self._normalise = Normalise(mean, std)
        self._notes = _Notes(dataset)
        maker = _Maker(dataset, augment, crop_size, seed, edge_rule, edge_thickness, scale)
        self._workers = Workers(maker, workers)
        self._mix_share = getattr(augment, "cutmix", 0.0)  # an augmentation of the user's own may have none
        self._class_index: ClassIndex | None = None
        self.worker_mib: int | None = None
        self.batches_per_epoch = len(self._order(0)) // (batch_size * world_size)

    def epoch(self, epoch: int, start: int = 0, progress: ProgressCallback | None = None) -> Iterator[dict[str, Any]]:
        """Yield this rank's batches of one epoch.

        Args:
            epoch: counted from 0.
            start: number of batches to leave out, to go on in the middle of an epoch.
            progress: called with (samples done, samples in all) while it is looked up where each class occurs, which
                the first class-uniform epoch on a data set does.

        Yields:
            `image`, `mask`, `edge` (see the head of this module) and `name`, a list of B names.

        Raises:
            DataError: a sample cannot be read (and `on_error` is `raise`), or a worker was killed.
        """
        order = self._order(epoch)
        draws = [Draw(int(index)) for index in order]
        if self.class_uniform:
            draws = self._index(progress).draw(order, share=self.class_uniform, seed=self.seed, epoch=epoch)
        tasks = (
            _Task(epoch, position, draws[position], self._partner(draws, position, epoch))
            for batch in range(start, self.batches_per_epoch)
            for position in self._positions(batch)
        )
        made: list[_Made] = []
        for one in self._workers.map(tasks, ahead=_BATCHES_AHEAD * self.batch_size):
            self._notes.add(one.warnings)
            if self._workers.workers:
                self.worker_mib = max(self.worker_mib or 0, one.mib)
            made.append(one)
            if len(made) == self.batch_size:
                yield self._collate(made)
                made = []

    def pop_warnings(self) -> list[str]:
        """Faults that were got round since the last call; each is given once per run."""
        return self._notes.pop()

    def close(self) -> None:
        """End the loading processes."""
        self._workers.close()

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(
            len(self.dataset),
            seed=self.seed,
            epoch=epoch,
            batch=self.batch_size,
            world_size=self.world_size,
            multiple=self.multiple,
        )

    def _partner(self, draws: Sequence[Draw], position: int, epoch: int) -> Draw | None:
        if not self._mix_share:
            return None
        return draw_partner(draws, position, share=self._mix_share, seed=self.seed, epoch=epoch)

    def _positions(self, batch: int) -> range:
        first = (batch * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def _index(self, progress: ProgressCallback | None = None) -> ClassIndex:
        if self._class_index is None:
            key = self.dataset.mask_key()
            name = f"classes-{key_of(key, TILE)}"
            folders = [] if key is None else self.dataset.cache_folders()
            table = cached_array(folders, name, lambda: self._find_places(progress))
            self._class_index = ClassIndex(self.dataset.num_classes, table)
        return self._class_index

    def _find_places(self, progress: ProgressCallback | None) -> np.ndarray:
        """Sample, label, y and x of the places of all classes, (N, 4) int32."""
        rows: list[tuple[int, int, int, int]] = []
        found = self._workers.map(range(len(self.dataset)), ahead=4 * max(1, self._workers.workers))
        for sample, (centres, warnings) in enumerate(found):
            self._notes.add(warnings)
            rows += [(sample, *centre) for centre in centres]
            if progress:
                progress(sample + 1, len(self.dataset))
        return np.array(rows, np.int32).reshape(-1, 4)

    def _collate(self, made: list[_Made]) -> dict[str, Any]:
        height, width = self.crop_size
        image = np.empty((len(made), 3, height, width), dtype=np.float32)
        mask = np.empty((len(made), height, width), dtype=np.int32)
        edge = np.empty((len(made), height, width), dtype=np.float32)
        for slot, one in enumerate(made):
            self._normalise(one.image, image[slot])
            mask[slot], edge[slot] = one.mask, one.edge
        if self.ignore_index != IGNORE:
            mask[mask == IGNORE] = self.ignore_index
        return {"image": image, "mask": mask, "edge": edge, "name": [one.name for one in made]}


class EvalLoader:
    """Whole samples in order, each once over all ranks.

    Args:
        dataset: what to read.
        rank: of this process, which gets the samples rank, rank + world_size, ...
        world_size: number of ranks.
        workers: loading processes; 0 loads in this one.
        indices: the samples of this process in another order, instead of those that follow from rank and world_size.

    Attributes:
        skipped: number of samples left out by the last pass because they could not be read (`on_error=skip`).
    """

    def __init__(
        self,
        *,
        dataset: SegmentationDataset,
        rank: int,
        world_size: int,
        workers: int,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Keep the settings; processes start with the first pass."""
        self.indices = range(rank, len(dataset), world_size) if indices is None else indices
        self.skipped = 0
        self._notes = _Notes(dataset)
        self._workers = Workers(_Reader(dataset), workers)

    def __len__(self) -> int:
        """Number of samples of this rank, unreadable ones included."""
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        """Yield (index, sample) in the order of `indices`.

        Raises:
            DataError: a sample cannot be read (and `on_error` is `raise`), or a worker was killed.
        """
        self.skipped = 0
        found = self._workers.map(self.indices, ahead=self._workers.workers + 1)
        for index, (sample, warnings) in zip(self.indices, found, strict=True):
            self._notes.add(warnings)
            if sample is None:
                self.skipped += 1
            else:
                yield index, sample

    def pop_warnings(self) -> list[str]:
        """Faults that were got round since the last call; each is given once per run."""
        return self._notes.pop()

    def close(self) -> None:
        """End the loading processes."""
        self._workers.close()


@dataclass(frozen=True)
class _Task:
    epoch: int
    position: int
    draw: Draw
    partner: Draw | None = None


@dataclass
class _Made:
    image: np.ndarray
    mask: np.ndarray
    edge: np.ndarray
    name: str
    warnings: list[str]
    mib: int


@dataclass
class _Reader:
    """Reads samples of a data set, by the data set's own rule for faults."""

    dataset: SegmentationDataset

    def __call__(self, index: int) -> tuple[Sample | None, list[str]]:
        """Read one sample; None if it is left out."""
        sample = self._try(index)
        return sample, self._take_warnings()

    def _try(self, index: int) -> Sample | None:
        try:
            return self.dataset.read(index)
        except DataError as error:
            self._left_out(error)
            return None

    def _left_out(self, error: DataError) -> None:
        if self.dataset.on_error != "skip":
            raise error
        self.dataset.warnings.append(f"left out: {error}")

    def _take_warnings(self) -> list[str]:
        warnings = list(self.dataset.warnings)
        self.dataset.warnings.clear()
        return warnings


@dataclass
class _Maker(_Reader):
    """Makes training samples (from a `_Task`) and looks for classes (from a plain index)."""

    augment: Augment
    crop_size: tuple[int, int]
    seed: int
    edge_rule: str
    edge_thickness: int
    scale: float

    def __call__(self, task: _Task | int) -> Any:
        """Do a task; a data set that skips faults goes on to the next sample that can be read."""
        if isinstance(task, int):
            return self._centres(task), self._take_warnings()
        place = [self.seed, task.epoch, task.position]
        image, mask, name = self._augmented(task.draw, np.random.default_rng(place))
        if task.partner is not None:
            rng = np.random.default_rng([*place, MIXED])
            image, mask = paste((image, mask), self._augmented(task.partner, rng)[:2], rng)
        edge = edge_map(mask, rule=self.edge_rule, thickness=self.edge_thickness)
        return _Made(image, mask, edge, name, self._take_warnings(), peak_mib())

    def _augmented(self, draw: Draw, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
        sample, centre = self._next_readable(draw)
        image, mask = sample.image, sample.mask
        if self.scale != 1:
            image, mask = rescale(image, mask, self.scale)
            if centre is not None:
                scaled = [min(int(at * self.scale), side - 1) for at, side in zip(centre, mask.shape, strict=True)]
                centre = (scaled[0], scaled[1])
        image, mask = self.augment(image, mask, rng, self.crop_size, centre=centre)
        return image, mask, sample.name

    def _centres(self, index: int) -> list[tuple[int, int, int]]:
        try:
            return class_centres(self.dataset.read_mask(index))
        except DataError as error:
            self._left_out(error)
            return []

    def _next_readable(self, draw: Draw) -> tuple[Sample, tuple[int, int] | None]:
        size = len(self.dataset)
        for step in range(size):
            sample = self._try((draw.index + step) % size)
            if sample is not None:
                return sample, draw.centre if step == 0 else None
        raise DataError(f"none of the {size} samples can be read; the last: {self._take_warnings()[-1]}")


class _Notes:
    """Warnings, each of them once."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self._seen: set[str] = set()
        self._new: list[str] = []
        self.add(dataset.warnings)
        dataset.warnings.clear()

    def add(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self._seen:
                self._seen.add(warning)
                self._new.append(warning)

    def pop(self) -> list[str]:
        new, self._new = self._new, []
        return new
