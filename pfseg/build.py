"""Composition root: from settings to networks, evaluators and, in `pfseg.build_data`, data sets.

Classes named by a `_target_` are built with their settings as keywords; nothing below these modules receives a
dictionary of settings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pfseg.build_data import display_positions, loader_workers
from pfseg.config.check import checked
from pfseg.config.commands import Profile
from pfseg.config.compose import compose
from pfseg.config.model_settings import HeadSettings, Model
from pfseg.config.schema import Train
from pfseg.config.settings import Target
from pfseg.config.stored import training_settings
from pfseg.config.targets import call, locate, named
from pfseg.config.training_checks import published_address
from pfseg.data.base import SegmentationDataset
from pfseg.data.loader import EvalLoader
from pfseg.devices import check_precision, rank, world_size
from pfseg.errors import ConfigError
from pfseg.inference.views import Network
from pfseg.weights import published
from pfseg.weights.checkpoint import Meta, load_meta
from pfseg.weights.sources import find_checkpoint, is_source

if TYPE_CHECKING:
    from pfseg.engine.evaluator import Evaluator
    from pfseg.models.network import SegmentationNetwork

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
) -> SegmentationNetwork:
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


def build_model(settings: Model, num_classes: int, in_channels: int = 3) -> SegmentationNetwork:
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
        model: SegmentationNetwork
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


def restore_model(path: Path, settings: Train) -> tuple[SegmentationNetwork, Meta]:
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


def load_initial(model: SegmentationNetwork, settings: Model) -> str:
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


def build_evaluator(
    settings: Train,
    dataset: SegmentationDataset,
    model: SegmentationNetwork | Trained,
    kind: type[Evaluator] | None = None,
    **options: Any,
) -> Evaluator:
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
