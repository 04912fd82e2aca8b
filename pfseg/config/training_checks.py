"""Checks of settings of trainings, previews and preparations: what can't go together, and what follows from several."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pfseg.config.commands import PrepareJob, Preview
from pfseg.config.data_settings import Dataset, FolderData
from pfseg.config.loss_settings import LossSettings, PFNetLossSettings
from pfseg.config.model_settings import Model, PFNetSettings
from pfseg.config.paths import absolute, existing, find_data, shown_size
from pfseg.config.run_settings import PolyCurve, SclPoly
from pfseg.config.schema import Evaluate, Train, TrainBase
from pfseg.config.stored import check_fits, resumable, training_settings
from pfseg.config.targets import named
from pfseg.data.base import parse_classes
from pfseg.data.tiling import windows
from pfseg.devices import plan_ranks
from pfseg.errors import ConfigError, MissingPackage
from pfseg.weights import published

_FORMATS = "(.pth, .pkl, .safetensors)"


def check_train(settings: Train) -> None:
    """Check a training, the run that it resumes and the files that it starts from."""
    model, schedule, epochs = settings.model, settings.schedule, settings.trainer.max_epochs
    if epochs is None and settings.trainer.max_steps is None:
        raise ConfigError("trainer.max_epochs and trainer.max_steps are both null: set one of them")
    if isinstance(schedule, PolyCurve) and schedule.legacy and schedule.per != "epoch":
        raise ConfigError("schedule.legacy=true goes with epochs only: set schedule.per=epoch or schedule.legacy=false")
    if isinstance(schedule, SclPoly) and epochs is not None and schedule.relax_epoch >= epochs:
        raise ConfigError(
            f"schedule.relax_epoch={schedule.relax_epoch} is not below trainer.max_epochs={epochs}: lower it"
        )
    _check_samples(settings)
    if model.pretrained is not None and model.init is not None:
        raise ConfigError(
            "model.pretrained and model.init are both set: init includes a backbone, so leave out pretrained"
        )
    if model.pretrained == published.NAME:
        published_address(model)
    elif model.pretrained is not None:
        model.pretrained = existing("model.pretrained", model.pretrained, f"a backbone file {_FORMATS}")
    if model.init is not None:
        model.init = existing("model.init", model.init, f"a checkpoint or weights of a whole network {_FORMATS}")
    if settings.resume is not None:
        folder = resumable(settings.resume)
        settings.resume = str(folder)
        last = folder / "checkpoints" / "last.safetensors"
        check_fits(last, training_settings(last, trust=True), settings)
    check_job(settings)


def check_prepare(settings: PrepareJob) -> None:
    """Make folders absolute, and check sizes and classes."""
    parse_classes(settings.dataset.classes)
    settings.src = existing("src", settings.src, "the folder of the archive or the scenes", folder=True)
    settings.out = absolute(settings.out)
    settings.dataset.root = settings.src
    _check_display(settings.dataset)
    prepare = settings.dataset.prepare
    if prepare.size is not None:
        prepare.stride = prepare.stride or prepare.size
        windows((1, 1), prepare.size, prepare.stride)
    elif prepare.stride is not None:
        raise ConfigError(f"dataset.prepare.stride={shown_size(prepare.stride)} needs a size: set dataset.prepare.size")


def check_preview(settings: Preview) -> None:
    """Check what samples depend on, and the picture."""
    _check_samples(settings)
    if Path(settings.out).suffix.lower() != ".png":
        raise ConfigError(f"out={settings.out} must end in .png: set out=<name>.png")
    settings.out = absolute(settings.out)


def _check_samples(settings: TrainBase) -> None:
    """Check what training samples depend on, and fill in `model.num_classes`."""
    model, data = settings.model, settings.dataset
    count = len(parse_classes(data.classes))
    if model.num_classes not in (None, count):
        raise ConfigError(
            f"model.num_classes={model.num_classes}, but dataset.classes of {data.name} lists {count}: set "
            f"model.num_classes={count}, or null to follow the data set"
        )
    model.num_classes = count
    _check_loss(settings.loss, data.name, count)
    least = smallest_side(model)
    for key, size in (("crop_size", data.crop_size), ("eval_size", data.eval_size)):
        if size is not None and min(size) < least:
            other = ", or use model.variant=pytorch (64 px)" if least > 64 and min(size) >= 64 else ""
            raise ConfigError(
                f"dataset.{key}={shown_size(size)} is too small for model.variant={getattr(model, 'variant', '')}, "
                f"which takes {least} px a side at least: set dataset.{key}={least}{other}"
            )
    _check_bands(data)
    find_data(data)


def _check_loss(loss: LossSettings, name: str, count: int) -> None:
    """Check that a loss has a term, and a weight for each class."""
    if not isinstance(loss, PFNetLossSettings):
        return
    if not (loss.seg_weight or loss.terms.chosen()):
        raise ConfigError("loss.seg_weight=0 and no further term: set loss.seg_weight=1 or add loss/term=[lovasz]")
    if isinstance(loss.class_weights, list) and len(loss.class_weights) != count:
        raise ConfigError(
            f"loss.class_weights has {len(loss.class_weights)} values, but dataset.classes of {name} lists {count}: "
            "give one for each class"
        )


def _check_bands(data: Dataset) -> None:
    """Check that there is a mean and a deviation for each band, and that pictures show bands that there are."""
    bands = _bands_of(data)
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != len(bands):
            raise ConfigError(
                f"dataset.{key} has {len(values)} values, but there are {len(bands)} bands: give one for each, or "
                f"dataset.{key}=null to have them measured (config: dataset.bands, dataset.{key})"
            )
    _check_display(data)


def _bands_of(data: Dataset) -> Sequence[int]:
    """The bands of a network; a data set of the user's own has as many as it has means."""
    return data.bands or (0, 1, 2) if isinstance(data, FolderData) else range(len(data.mean or (0, 1, 2)))


def _check_display(data: Dataset) -> None:
    bands = _bands_of(data)
    if data.display_bands is not None and (unknown := [band for band in data.display_bands if band not in bands]):
        raise ConfigError(
            f"dataset.display_bands={list(data.display_bands)}: band {unknown[0]} is not among the network's bands "
            f"{[*bands]}"
        )


def smallest_side(model: Model) -> int:
    """Least number of pixels per side that a network takes."""
    if not isinstance(model, PFNetSettings):
        return 1
    return 64 if model.variant == "pytorch" else 32 * max(model.salient_pool, model.edge_pool)


def check_job(settings: Train | Evaluate) -> None:
    """Check loggers, ranks and devices."""
    if settings.logger.tensorboard is not None and importlib.util.find_spec("tensorboardX") is None:
        raise MissingPackage("logger=tensorboard", "tensorboardX", "tensorboard")
    settings.ranks = plan_ranks(settings)[0]
    if settings.launch.name == "inline" and settings.ranks != 1:
        raise ConfigError(f"launch=inline runs one rank, got ranks={settings.ranks}: add ranks=1 or use launch=mpi")


def published_address(model: Model) -> str:
    """Where the public weights of a network's backbone are; raises ConfigError if there are none."""
    backbone = getattr(model, "backbone", None)  # a network of the user's own may have none
    return published.address(model.target, {}) if backbone is None else published.address(*named(backbone))
