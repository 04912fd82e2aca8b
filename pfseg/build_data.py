"""Data sets from settings, and what is measured on them once: stretch, colours, class weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pfseg.config.data_settings import Dataset, FolderData
from pfseg.config.loss_settings import LossSettings, PFNetLossSettings
from pfseg.config.schema import TrainBase
from pfseg.config.targets import call, instantiate, locate
from pfseg.config.types import SharedPercentiles
from pfseg.data.archives.folders import find_in_folders
from pfseg.data.base import Scene, SegmentationDataset
from pfseg.data.cache import cache_folder, cached_array, key_of, stat_of
from pfseg.data.census import count_all_masks
from pfseg.data.folder import FolderDataset
from pfseg.data.inputs import INDEX, Record, band_statistics, make_record, pooled_range, prepared_record
from pfseg.data.loader import TrainLoader
from pfseg.data.reader import ImageReader
from pfseg.data.whole_scenes import SceneDataset
from pfseg.errors import ConfigError


def build_dataset(settings: Dataset, split: str) -> SegmentationDataset:
    """Build a split of a data set."""
    parameters = inspect.signature(locate(settings.target)).parameters
    root = parameters.get("root")
    if root is not None and root.default is root.empty and settings.root is None:
        name = settings.target.rpartition(".")[2]
        raise ConfigError(f"dataset.root is null, but {name} needs it: add dataset.root=<folder of the data set>")
    if isinstance(settings, FolderData) and settings.source == "scenes":
        return _build_scenes(settings, split)
    keywords = {key: value for key, value in settings.values().items() if key in parameters}
    return cast(SegmentationDataset, call(settings.target, keywords | {"split": split}))


def share_stretch(settings: Dataset, progress: Callable[[int, int], None], files: Sequence[Path] | None = None) -> None:
    """Replace percentiles of the training split in `stretch` by the range that they stand for, found once.

    `progress` is called with the images done and those in all; `files` are the images, if not those of the data set.
    Raises DataError if none can be read.
    """
    bands, stretch = settings.reading["bands"], settings.reading["stretch"]
    if not isinstance(stretch, dict) or "percentiles" not in stretch:
        return
    if files is None:
        files = build_dataset(settings.model_copy(update={"stretch": None}), "train").image_files()
    images, percents = files, cast(SharedPercentiles, stretch)["percentiles"]
    ranges = _found_once("stretch", files, [bands, percents], lambda: pooled_range(images, bands, percents, progress))
    settings.__setattr__("stretch", {"range": [(low, high) for low, high in ranges]})  # of any class with this setting


def measure_colours(settings: Dataset, dataset: SegmentationDataset, progress: Callable[[int, int], None]) -> None:
    """Fill in `mean` and `std` where they are null, from the training images; found once. See `band_statistics`."""
    if settings.mean is not None and settings.std is not None:
        return
    key = [*settings.reading.values(), len(dataset)]
    found = _found_once("bands", dataset.image_files(), key, lambda: band_statistics(dataset, progress))
    mean, std = map(tuple, found)
    settings.mean, settings.std = settings.mean or mean, settings.std or std


def settle_class_weights(
    loss: LossSettings, data: Dataset, dataset: SegmentationDataset, progress: Callable[[int, int], None]
) -> None:
    """Replace a rule for class weights by the weights that follow from the training masks, found once."""
    if not isinstance(loss, PFNetLossSettings) or not isinstance(rule := loss.class_weights, str):
        return
    root, key = Path(data.root) if data.root else None, [[info.name for info in dataset.classes], len(dataset), rule]

    def count() -> np.ndarray:
        return count_all_masks(dataset, root, "train", progress).class_weights(rule)

    loss.class_weights = _found_once("weights", dataset.image_files(), key, count)


def _found_once(what: str, files: Sequence[Path], others: list[object], find: Callable[[], np.ndarray]) -> list[Any]:
    """What depends on the content of files, and on `others`, from the cache; data sets without files have no cache."""
    key = key_of([[str(path.absolute()), *stat_of(path)] for path in files], *others)
    found: list[Any] = cached_array([cache_folder()] if files else [], f"{what}-{key}", find).tolist()
    return found


def input_record(settings: Dataset, dataset: SegmentationDataset) -> Record:
    """What a network that is trained on this data set is given, in terms of the files that a user has."""
    root, bands = settings.root, settings.reading["bands"]
    record = prepared_record(Path(root)) if root else None
    if record is None:
        record = make_record(ImageReader(**settings.reading), dataset.image_files())
    elif bands is not None and [*bands] != [0, 1, 2]:
        if (kept := record["bands"]) is None:
            raise ConfigError(
                f"dataset.bands={[*bands]} puts the bands of the patches in {root} in another order, but those are "
                "red, green and blue by their tags: name the bands of the files in pfseg prepare instead"
            )
        record["bands"] = [kept[band] for band in bands]
    return record | {"mean": list(settings.mean or ()), "std": list(settings.std or ())}


def follow_record(settings: Dataset, record: Record | None, changes: Collection[str]) -> None:
    """Read images as those were that a network was trained on, but for the settings that `changes` names.

    Patches stay as their preparation left them.
    """
    if record is None or not isinstance(settings, FolderData) or (Path(str(settings.root)) / INDEX).is_file():
        return
    for key in ("bands", "stretch"):
        if key not in changes:
            setattr(settings, key, record[key])


def display_positions(settings: Dataset) -> list[int] | None:
    """Which of a network's bands are shown as red, green and blue; None for the first three, or grey."""
    chosen, bands = settings.display_bands, settings.reading["bands"]
    if chosen is None:
        return None
    return [band if bands is None else bands.index(band) for band in chosen]


def _build_scenes(settings: FolderData, split: str) -> SceneDataset:
    """Build a split whose samples are windows of whole scenes, without patches."""
    splits = settings.splits or {split: split}
    chosen = {key: value for key, value in splits.items() if key == split or isinstance(splits.get("val"), float)}
    scenes = find_scenes(settings, chosen)
    dataset = SceneDataset(
        split=split,
        scenes=scenes,
        classes=settings.classes,
        ignore=settings.ignore,
        bands=settings.bands,
        stretch=settings.stretch,
        on_error=settings.on_error,
        size=settings.prepare.size,
        stride=settings.prepare.stride,
    )
    dataset.warnings += getattr(scenes, "faults", [])  # a finder of the user's own may return a plain list
    return dataset


def find_scenes(settings: FolderData, splits: Mapping[str, str | Sequence[str] | float] | None) -> list[Scene]:
    """Find the scenes of a published archive, or of a data set's folders."""
    root = Path(str(settings.root))
    if settings.prepare.scenes is not None:
        return cast(list[Scene], instantiate(settings.prepare.scenes, src=root))
    patches = settings.model_copy(update={"source": "patches"})

    def build(split: str) -> FolderDataset:
        return cast(FolderDataset, build_dataset(patches, split))

    return find_in_folders(root, splits, build, settings.images, settings.mask_suffix)


def build_loader(settings: TrainBase, dataset: SegmentationDataset, **process: int) -> TrainLoader:
    """Build what draws, augments and batches training samples; `process`: rank, world_size and workers."""
    data = settings.dataset
    return TrainLoader(
        dataset=dataset,
        augment=instantiate(settings.augment),
        crop_size=data.crop_size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        edge_rule=data.edge.rule,
        edge_thickness=data.edge.thickness,
        multiple=settings.trainer.accumulate,
        mean=data.mean or (),
        std=data.std or (),
        ignore_index=data.ignore_index,
        scale=data.scale,
        class_uniform=data.class_uniform,
        **process,
    )


def loader_workers(settings: TrainBase) -> int:
    """Number of loading processes of a rank."""
    if settings.trainer.workers == "auto":
        return max(1, min(4, int(os.environ.get("OMP_NUM_THREADS", "2"))))
    return settings.trainer.workers
