"""Composition root: from settings to objects. The only module that sees them all.

Classes named by a `_target_` are built with their settings as keywords; nothing below this module receives a
dictionary of settings.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from pfseg.config.check import checked
from pfseg.config.commands import Profile
from pfseg.config.compose import compose
from pfseg.config.data_settings import Dataset, FolderData
from pfseg.config.loss_settings import LossSettings, PFNetLossSettings
from pfseg.config.model_settings import HeadSettings, Model
from pfseg.config.schema import Train, TrainBase
from pfseg.config.settings import Target
from pfseg.config.stored import training_settings
from pfseg.config.targets import call, instantiate, locate, named
from pfseg.config.training_checks import published_address
from pfseg.config.types import SharedPercentiles
from pfseg.data.archives.folders import find_in_folders
from pfseg.data.base import Scene, SegmentationDataset
from pfseg.data.cache import cache_folder, cached_array, key_of, stat_of
from pfseg.data.census import count_all_masks
from pfseg.data.folder import FolderDataset
from pfseg.data.inputs import INDEX, Record, band_statistics, make_record, pooled_range, prepared_record
from pfseg.data.loader import EvalLoader, TrainLoader
from pfseg.data.reader import ImageReader
from pfseg.data.whole_scenes import SceneDataset
from pfseg.devices import check_precision, rank, world_size
from pfseg.errors import ConfigError
from pfseg.inference.views import Network
from pfseg.weights import published
from pfseg.weights.checkpoint import Meta, load_meta
from pfseg.weights.sources import find_checkpoint, is_source

_NETWORK = "pfseg.models.network.SegmentationNetwork"
_NOT_OF_THE_NETWORK = ("name", "pretrained", "init", "num_classes")


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    variant: str = "pytorch",
    pretrained: str | Path | None = None,
    config_dir: str | Path | None = None,
) -> Any:
    """Build a network of conf/model by its name: a Jittor module that maps (N, C, H, W) float32 to `SegOutput`.

    Args:
        name: of a choice of `model`, such as `pfnet_r50`, `sfnet_r18` or a file of conf/model; or a model folder, run
            folder, checkpoint, `hf://owner/name` or `wandb://entity/project/name:alias`, which says all the rest and
            whose weights are loaded.
        num_classes: K.
        in_channels: bands of the images; weights of red, green and blue are spread over others than 3.
        variant: of PFNet, `pytorch` or `jittor`, see `pfseg.models.pfnet.VARIANTS`.
        pretrained: backbone weights (.pth, .pkl, .safetensors), or `imagenet` for public ones, which are downloaded.
        config_dir: a further folder of YAML files; `conf` in the working folder is found without it.

    Raises:
        ConfigError: unknown name, or no number of classes.
        CheckpointError: unusable `pretrained` or checkpoint.
    """
    if is_source(name) or Path(name).exists():
        path = find_checkpoint(name)
        return restore_model(path, training_settings(path))[0]
    if num_classes is None:
        raise ConfigError(f"create_model({name!r}) needs num_classes: only a trained network knows its own")
    folder = Path(config_dir) if config_dir is not None else None
    choices = [f"model={name}"] + ([f"model.variant={variant}"] if variant != "pytorch" else [])
    composed = compose("profile", choices, folder=folder)
    settings = checked(composed, Profile).model
    model = build_model(settings, num_classes, in_channels)
    if pretrained is not None:
        settings.pretrained = str(pretrained)
        load_initial(model, settings)
    return model


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


def build_model(settings: Model, num_classes: int, in_channels: int = 3) -> Any:
    """Build a network for images of `in_channels` bands, with random weights: by the seed alone, not by the device.

    Other numbers than 3 go as `in_channels` to the backbone, or to a network without one. Raises ConfigError if it
    takes no such keyword, or a head the backbone's maps.
    """
    from pfseg.models.network import Head
    from pfseg.runtime import on_processor

    keywords = {key: value for key, value in settings.values().items() if key not in _NOT_OF_THE_NETWORK}
    keywords["num_classes"] = num_classes
    given = {} if in_channels == 3 else {"in_channels": in_channels}
    with on_processor():
        backbone, target = keywords.get("backbone"), locate(settings.target)
        if isinstance(backbone, Target | Mapping):
            keywords["backbone"] = _build_backbone(backbone, getattr(target, "backbone_options", {}), given)
        else:
            keywords |= given
        if inspect.isclass(target) and issubclass(target, Head):
            backbone = keywords.pop("backbone")
            head = call(settings.target, keywords | {"in_channels": backbone.out_channels})
            model = call(_NETWORK, {"backbone": backbone, "head": head, "num_classes": num_classes})
        else:
            model = call(settings.target, keywords)
    model.in_channels = in_channels
    return model


def _build_backbone(
    settings: Target | Mapping[str, Any], published: Mapping[str, Any], given: Mapping[str, Any]
) -> Any:
    """Build a backbone; settings that are null become those of the published network, if it has any."""
    target, values = named(settings)
    chosen = {key: value for key, value in published.items() if key in values and values[key] is None}
    return call(target, {**values, **chosen, **given})


def restore_model(path: Path, settings: Train) -> tuple[Any, Meta]:
    """The network of a checkpoint with its weights, and the checkpoint's metadata; raises CheckpointError."""
    from pfseg.weights.checkpoint import SECTIONS, load_checkpoint
    from pfseg.weights.transfer import load_weights

    arrays, meta = load_checkpoint(path)
    model = build_model(settings.model, len(settings.dataset.classes), settings.dataset.num_bands)
    load_weights(model, {key: value for key, value in arrays.items() if not key.startswith(SECTIONS)}, str(path))
    return model, meta


class Trained(NamedTuple):
    """A trained network that only predicts."""

    network: Network  # normalised batch -> logits
    device: str
    output_stride: int  # sides of batches are multiples of it
    min_size: int  # smallest side that it takes in pixels
    size: int | None  # the only side that it takes; None for any
    meta: Meta  # of the checkpoint


def restore_network(path: Path, settings: Train, precision: str, *, fold: bool) -> Trained:
    """The network of a checkpoint that was trained with `settings`, on Jittor, or of an ONNX file, without Jittor.

    With `fold`, BatchNorm becomes part of the convolutions, which is faster and rounds otherwise.

    Raises:
        CheckpointError: damaged, or of another network.
        ConfigError: a package for ONNX files isn't installed, or a precision needs a GPU.
    """
    if path.suffix == ".onnx":
        from pfseg.inference.onnx_network import OnnxNetwork

        exported = OnnxNetwork(path)
        return Trained(exported, exported.device, 1, exported.size, exported.size, load_meta(path))
    from pfseg.inference.folding import JittorNetwork, fold_batchnorm
    from pfseg.ops import kernels
    from pfseg.runtime import jt

    check_precision(precision, gpu=kernels.active())
    kernels.set_precision(precision)
    model, meta = restore_model(path, settings)
    model.eval()
    if fold:
        fold_batchnorm(model)
    device, least = "cuda" if jt.flags.use_cuda else "cpu", getattr(model, "min_size", 1)
    return Trained(JittorNetwork(model.predict), device, model.output_stride, least, None, meta)


def load_initial(model: Any, settings: Model) -> str:
    """Load the weights that a network starts from; returns what was loaded, or raises CheckpointError."""
    from pfseg.engine.ranks import on_every_rank
    from pfseg.weights.transfer import load_backbone, load_network

    if settings.init:
        return load_network(model, on_every_rank(Path(settings.init)))
    if settings.pretrained:
        if settings.pretrained == published.NAME:
            address = published_address(settings)
            file = published.fetch(address) if rank() == 0 else published.place(address)
        else:
            file = Path(settings.pretrained)
        kind = locate(named(cast(HeadSettings, settings).backbone)[0])
        renamed, fresh = getattr(kind, "rename_pretrained", None), getattr(kind, "fresh", ())
        return load_backbone(model, on_every_rank(file), renamed, fresh)
    return "training from random weights; model.pretrained=imagenet or a file starts from those of a trained backbone"


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


def build_evaluator(settings: Train, dataset: SegmentationDataset, model: Any, kind: Any = None, **options: Any) -> Any:
    """Build what scores `model` on a data set as the settings of a training say.

    `kind`: `Evaluator`, the default, or a class derived from it, with further keywords in `options`, of which `loader`
    replaces the class of the loader.
    """
    from pfseg.engine.evaluator import Evaluator

    data = settings.dataset
    loader = options.pop("loader", EvalLoader)
    workers = 1 if loader_workers(settings) else 0
    return (kind or Evaluator)(
        loader(dataset=dataset, rank=rank(), world_size=world_size(), workers=workers),
        num_classes=dataset.num_classes,
        mean=data.mean or (),
        std=data.std or (),
        display=display_positions(data),
        contrast=data.eval_contrast,
        window=data.eval_size,
        stride=model.output_stride,
        batch_size=settings.batch_size,
        batch_pixels=settings.batch_size * math.prod(data.crop_size),
        min_size=getattr(model, "min_size", 1),
        scale=data.scale,
        ignore_index=data.ignore_index,
        num_panels=settings.trainer.num_samples,
        **options,
    )
