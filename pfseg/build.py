"""Composition root: from a configuration to objects. The only module that sees them all.

Nothing below this module receives a configuration: constructors take
plain arguments.
"""

from __future__ import annotations

import inspect
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from pfseg.config.checks import pair
from pfseg.config.compose import compose
from pfseg.data.archives.folders import find_in_folders
from pfseg.data.base import Scene, SegmentationDataset
from pfseg.data.folder import FolderDataset
from pfseg.data.loader import EvalLoader, TrainLoader
from pfseg.data.whole_scenes import SceneDataset
from pfseg.errors import ConfigError

Config = dict[str, Any]


def create_model(name: str, *, num_classes: int, variant: str = "pytorch", pretrained: str | Path | None = None) -> Any:
    """Build a network of conf/model by its name.

    Args:
        name: `pfnet_r18`, `pfnet_r50`, `pfnet_r101`, `pfnet_r2n101` or another file of conf/model.
        num_classes: K.
        variant: `pytorch` or `jittor`, see `pfseg.models.pfnet.VARIANTS`.
        pretrained: backbone weights (.pth, .pkl, .safetensors).

    Returns:
        A Jittor module that maps (N, 3, H, W) float32 to `SegOutput`.

    Raises:
        ConfigError: unknown name.
        CheckpointError: unusable `pretrained`.
    """
    composed = compose("train", [f"model={name}", f"model.variant={variant}"]).model
    config = cast(Config, OmegaConf.to_container(composed))
    model = build_model(config, num_classes)
    if pretrained is not None:
        load_initial(model, config | {"pretrained": pretrained})
    return model


def instantiate(config: Config, **given: Any) -> Any:
    """Call the class that `_target_` names with the other keys and `given`; nested `_target_`s first.

    Raises:
        ConfigError: the class does not exist, or its constructor refuses a value.
    """
    target = config["_target_"]
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"_target_={target} can't be imported ({error}); give package.module.Class") from error
    arguments = {
        key: instantiate(value) if isinstance(value, dict) and "_target_" in value else value
        for key, value in (config | given).items()
        if key != "_target_"
    }
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{target} can't be built: {error}") from error


def build_dataset(config: Config, split: str) -> SegmentationDataset:
    """Build a split of the data set that `config` (the group `dataset`) describes."""
    module, _, name = config["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    root = parameters.get("root")
    if root is not None and root.default is root.empty and config["root"] is None:
        raise ConfigError(f"dataset.root is null, but {name} needs it: add dataset.root=<folder of the data set>")
    if config.get("source") == "scenes":
        return _build_scenes(config, split)
    arguments = {key: value for key, value in config.items() if key == "_target_" or key in parameters}
    dataset: SegmentationDataset = instantiate(arguments, split=split)
    return dataset


def _build_scenes(config: Config, split: str) -> SceneDataset:
    """Build a split whose samples are windows of whole scenes, without patches."""
    keys = ("classes", "ignore", "bands", "stretch", "on_error")
    sizes = {key: value and pair(value) for key, value in config["prepare"].items() if key in ("size", "stride")}
    shared = {key: config[key] for key in keys} | sizes
    scenes = _find_scenes(config, split)
    dataset = SceneDataset(split=split, scenes=scenes, **shared)
    dataset.warnings += getattr(scenes, "faults", [])  # a finder of the user's own may return a plain list
    return dataset


def _find_scenes(config: Config, split: str) -> list[Scene]:
    root = Path(config["root"])
    if config["prepare"]["scenes"]:
        return cast(list[Scene], instantiate(config["prepare"]["scenes"], src=root))
    patches = {**config, "source": "patches"}
    splits = config["splits"] or {split: split}
    chosen = {key: value for key, value in splits.items() if key == split or isinstance(splits.get("val"), float)}

    def build(name: str) -> FolderDataset:
        return cast(FolderDataset, build_dataset(patches, name))

    return find_in_folders(root, chosen, build, config["images"], config["mask_suffix"])


def build_model(config: Config, num_classes: int) -> Any:
    """Build the network that `config` (the group `model`) describes."""
    arguments = {
        key: value for key, value in config.items() if key not in ("name", "pretrained", "init", "num_classes")
    }
    return instantiate(arguments, num_classes=num_classes)


def load_initial(model: Any, config: Config) -> str:
    """Load the weights that `config` (the group `model`) starts from; returns what was loaded and what was not.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    from pfseg.engine.ranks import on_every_rank
    from pfseg.weights.initial import load_backbone, load_network

    if config["init"]:
        return load_network(model, on_every_rank(Path(config["init"])))
    if config["pretrained"]:
        module, _, name = config["backbone"]["_target_"].rpartition(".")
        rename = getattr(getattr(import_module(module), name), "rename_pretrained", None)
        return load_backbone(model, on_every_rank(Path(config["pretrained"])), rename)
    return "training from random weights; model.pretrained=<file> starts from those of a trained backbone"


def build_loader(config: Config, dataset: SegmentationDataset, **process: int) -> TrainLoader:
    """Build what draws, augments and batches training samples; `process`: rank, world_size and workers."""
    data = config["dataset"]
    shared: Config = {key: data[key] for key in ("mean", "std", "ignore_index", "scale", "class_uniform")}
    return TrainLoader(
        dataset=dataset,
        augment=instantiate(config["augment"]),
        crop_size=tuple(data["crop_size"]),
        batch_size=config["batch_size"],
        seed=config["seed"],
        edge_rule=data["edge"]["rule"],
        edge_thickness=data["edge"]["thickness"],
        multiple=config["trainer"]["accumulate"],
        **shared | process,
    )


def loader_workers(config: Config) -> int:
    """Number of loading processes of a rank."""
    wanted = config.get("trainer", {}).get("workers", "auto")
    return max(1, min(4, int(os.environ.get("OMP_NUM_THREADS", "2")))) if wanted == "auto" else int(wanted)


def build_evaluator(config: Config, dataset: SegmentationDataset, model: Any, kind: Any = None, **options: Any) -> Any:
    """Build what scores `model` on a data set as `config`, that of a training, says.

    Args:
        config: of the training.
        dataset: what to score on.
        model: the network, for its `output_stride` and smallest input.
        kind: `Evaluator`, the default, or a class derived from it.
        options: further keywords of `kind`; `loader` replaces the class of the loader.
    """
    from pfseg.engine.evaluator import Evaluator
    from pfseg.runtime import rank, world_size

    data = config["dataset"]
    loader = options.pop("loader", EvalLoader)
    workers = 1 if loader_workers(config) else 0
    return (kind or Evaluator)(
        loader(dataset=dataset, rank=rank(), world_size=world_size(), workers=workers),
        num_classes=dataset.num_classes,
        mean=data["mean"],
        std=data["std"],
        contrast=data["eval_contrast"],
        window=tuple(data["eval_size"]) if data["eval_size"] else None,
        stride=model.output_stride,
        batch_size=config["batch_size"],
        batch_pixels=config["batch_size"] * math.prod(data["crop_size"]),
        min_size=getattr(model, "min_size", 1),
        scale=data["scale"],
        ignore_index=data["ignore_index"],
        num_panels=config["trainer"]["num_samples"],
        **options,
    )
