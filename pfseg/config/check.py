"""From composed settings to checked, typed ones: what follows from several settings, and what can't go together."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pfseg.config.commands import SCHEMAS, Convert, Predict, PrepareJob, Preview
from pfseg.config.compose import first_line
from pfseg.config.model_settings import Model, PFNet
from pfseg.config.resume import resumable
from pfseg.config.run_settings import SclPoly
from pfseg.config.schema import Evaluate, Train, TrainBase
from pfseg.config.settings import Settings
from pfseg.config.stored import check_fits, current, training_settings
from pfseg.config.validation import description, validate
from pfseg.data.base import check_stretch, parse_classes
from pfseg.data.tiling import windows
from pfseg.devices import plan_ranks
from pfseg.errors import ConfigError

S = TypeVar("S", bound=Settings)


def check(cfg: DictConfig) -> Settings:
    """Check composed settings and resolve them.

    Args:
        cfg: as composed from a command's file in conf/, such as train.yaml.

    Returns:
        Typed settings of the command, with what follows from other values filled in: `model.num_classes`, `ranks` as a
        number, absolute paths.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or range, values that don't go together, or a file,
            folder or device that isn't there.
    """
    if cfg.get("verify") == "only" and OmegaConf.is_missing(cfg, "src") and not OmegaConf.is_missing(cfg, "out"):
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"src": cfg.out}))  # a check of patches needs no archive
    if cfg.get("job") == "convert" and "dataset.root" in OmegaConf.missing_keys(cfg):
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"dataset": {"root": None}}))  # nor does a checkpoint need data
    schema = SCHEMAS.get(cfg.get("job", ""), Train)
    try:
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a value'} cannot be resolved: {first_line(error)}") from error
    assert isinstance(raw, dict)
    unset = [str(key) for key, value in raw.items() if value == "???"]  # of an environment variable
    for key in sorted({*OmegaConf.missing_keys(cfg), *unset}):
        raise ConfigError(f"{key} is not set: add {key}=<{description(schema, raw, key)}>")
    if schema is PrepareJob and "prepare" not in raw["dataset"]:
        raise ConfigError(f"dataset={raw['dataset'].get('name')} has no files to cut: choose another data set")
    settings = validate(cast(dict[str, Any], raw), schema)
    if (further := _CHECKS.get(schema)) is not None:
        further(settings)
    return settings


def checked(cfg: DictConfig, schema: type[S]) -> S:
    """Check composed settings that are of the class `schema`; see `check`."""
    settings = check(cfg)
    assert isinstance(settings, schema)
    return settings


# Training


def _check_train(settings: Train) -> None:
    _check_lengths(settings)
    _check_samples(settings)
    _check_initial(settings.model)
    if settings.resume is not None:
        folder = resumable(settings.resume)
        settings.resume = str(folder)
        stored = OmegaConf.to_container(OmegaConf.load(folder / "resolved.yaml"))
        assert isinstance(stored, dict)
        last = folder / "checkpoints" / "last.safetensors"
        check_fits(last, validate(current(cast(dict[str, Any], stored)), Train, targets=False), settings)
    _check_job(settings)


def _check_samples(settings: TrainBase) -> None:
    """Check what training samples depend on."""
    _fill_classes(settings)
    _check_sizes(settings)
    _check_ranges(settings)
    if settings.dataset.root is not None:
        root = existing("dataset.root", settings.dataset.root, "the folder of the data set", folder=True)
        settings.dataset.root = str(root)


def _check_lengths(settings: Train) -> None:
    """A training needs an end, and a schedule that fits its length."""
    trainer, schedule = settings.trainer, settings.schedule
    epochs = trainer.max_epochs
    if epochs is None and trainer.max_steps is None:
        raise ConfigError(
            "trainer.max_epochs and trainer.max_steps are both null: set one, such as trainer.max_epochs=20"
        )
    if getattr(schedule, "legacy", False) and schedule.per != "epoch":
        raise ConfigError("schedule.legacy=true goes with epochs only: set schedule.per=epoch or schedule.legacy=false")
    if isinstance(schedule, SclPoly) and epochs is not None and schedule.relax_epoch >= epochs:
        raise ConfigError(
            f"schedule.relax_epoch={schedule.relax_epoch} is not below trainer.max_epochs={epochs}: lower it"
        )


def _fill_classes(settings: TrainBase) -> None:
    """Fill in `model.num_classes`, which can't differ from the class table's."""
    count = len(parse_classes(settings.dataset.classes))
    if settings.model.num_classes not in (None, count):
        raise ConfigError(
            f"model.num_classes={settings.model.num_classes}, but dataset.classes of {settings.dataset.name} lists "
            f"{count}: set model.num_classes={count}, or null to follow the data set"
        )
    settings.model.num_classes = count


def _check_sizes(settings: TrainBase) -> None:
    """Crop and window can't be too small for the network."""
    model, least = settings.model, smallest_side(settings.model)
    for key, size in (("crop_size", settings.dataset.crop_size), ("eval_size", settings.dataset.eval_size)):
        if size is not None and min(size) < least:
            variant = model.variant if isinstance(model, PFNet) else ""
            other = ", or use model.variant=pytorch (64 px)" if least > 64 and min(size) >= 64 else ""
            raise ConfigError(
                f"dataset.{key}={_shown_size(size)} is too small for model.variant={variant}, which takes {least} px a "
                f"side at least: set dataset.{key}={least}{other}"
            )


def smallest_side(model: Model) -> int:
    """Least number of pixels per side that a network takes."""
    if not isinstance(model, PFNet):
        return 1
    return 64 if model.variant == "pytorch" else 32 * max(model.salient_pool, model.edge_pool)


def _check_ranges(settings: TrainBase) -> None:
    ranges = {
        "dataset.scale_range": settings.dataset.scale_range,
        "augment.scale_range": getattr(settings.augment, "scale_range", None),
        "augment.blur": getattr(settings.augment, "blur", None),
    }
    for key, bounds in ranges.items():
        if bounds is not None and (bounds[0] > bounds[1] or (key.endswith("scale_range") and bounds[0] <= 0)):
            raise ConfigError(f"{key}={list(bounds)}: expected [low, high], both above 0 and in this order")


def _check_initial(model: Model) -> None:
    """Fill in the paths of the weights to start from."""
    if model.pretrained is not None and model.init is not None:
        raise ConfigError(
            "model.pretrained and model.init are both set: model.init holds a backbone already, leave out the other"
        )
    kinds = ".pth, .pkl, .safetensors"
    if model.pretrained is not None:
        model.pretrained = str(existing("model.pretrained", model.pretrained, f"a backbone file ({kinds})"))
    if model.init is not None:
        what = f"a checkpoint or weights of a whole network ({kinds})"
        model.init = str(existing("model.init", model.init, what))


def _check_job(settings: Train | Evaluate) -> None:
    """Check loggers, ranks and devices."""
    if settings.logger.tensorboard is not None and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "logger=tensorboard needs tensorboardX, which is not installed: pip install 'pfseg[tensorboard]'"
        )
    settings.ranks = plan_ranks(settings)[0]
    if settings.launch.name == "inline" and settings.ranks != 1:
        raise ConfigError(f"launch=inline runs one rank, got ranks={settings.ranks}: add ranks=1 or use launch=mpi")


# Evaluation


def _check_evaluate(settings: Evaluate) -> None:
    given = settings.checkpoint
    paths = [find_checkpoint(each) for each in ([given] if isinstance(given, str) else given)]
    settings.checkpoint = str(paths[0]) if isinstance(given, str) else [str(path) for path in paths]
    if settings.dataset.root is not None:
        root = existing("dataset.root", settings.dataset.root, "the folder of the data set", folder=True)
        settings.dataset.root = str(root)
    changes = dataset_changes(settings)
    _check_scores(settings, {path: training_settings(path, changes, trust=settings.trust) for path in paths})
    _check_job(settings)


def dataset_changes(settings: Evaluate | Predict) -> dict[str, Any]:
    """The settings of the data set that replace a checkpoint's."""
    changes = settings.dataset.dump()
    return {key: value for key, value in changes.items() if key != "root" or value is not None}


def _check_scores(settings: Evaluate, stored: Mapping[Path, Train]) -> None:
    """Check an evaluation against the settings that each checkpoint was trained with."""
    if not stored:
        raise ConfigError("checkpoint=[] names none: give run folders or .safetensors files")
    tables = {path: [info.name for info in parse_classes(train.dataset.classes)] for path, train in stored.items()}
    (first, names), *others = tables.items()
    for path, other in others:
        if other != names:
            raise ConfigError(
                f"checkpoint: {first} has {len(names)} classes ({', '.join(names)}), {path} has {len(other)} "
                f"({', '.join(other)}); only checkpoints of the same classes can be compared"
            )
    if unknown := [name for name in settings.exclude if name not in names]:
        raise ConfigError(f"exclude: unknown class {unknown[0]!r}; the classes are {', '.join(names)}")
    if not set(names) - set(settings.exclude):
        raise ConfigError("exclude names every class, so the means have nothing left: leave one of them in")
    for path, train in stored.items():
        _check_window(settings, path, train)


def _check_window(settings: Evaluate, path: Path, stored: Train) -> None:
    size = stored.dataset.eval_size if settings.eval_size is None else settings.eval_size
    window = None if size == "whole" else size
    if window is None and settings.overlap:
        raise ConfigError(
            f"overlap={settings.overlap:g} needs windows, but whole images are predicted: set eval_size=<pixels> or "
            "overlap=0"
        )
    if not settings.scales:
        raise ConfigError("scales=[]: expected one or more numbers above 0, such as [0.75,1,1.25]")
    least, scale = smallest_side(stored.model), min(settings.scales)
    if window is not None and round(min(window) * scale) < least:
        raise ConfigError(
            f"eval_size={_shown_size(window)}{f' at scale {scale:g}' if scale != 1 else ''} is too small for {path}, "
            f"whose network takes {least} px a side at least: set "
            f"eval_size={math.ceil(least / scale / 32) * 32}{' or larger scales' * (scale != 1)}"
        )


# Other commands


def _check_prepare(settings: PrepareJob) -> None:
    parse_classes(settings.dataset.classes)
    settings.src = str(existing("src", settings.src, "the folder of the archive or the scenes", folder=True))
    settings.out = _absolute(settings.out)
    settings.dataset.root = settings.src
    prepare = settings.dataset.prepare
    if prepare.size is not None:
        prepare.stride = prepare.stride or prepare.size
        windows((1, 1), prepare.size, prepare.stride)
    elif prepare.stride is not None:
        raise ConfigError(
            f"dataset.prepare.stride={_shown_size(prepare.stride)} needs a size: set dataset.prepare.size, or "
            "stride=null"
        )


def _check_preview(settings: Preview) -> None:
    _check_samples(settings)
    if Path(settings.out).suffix.lower() != ".png":
        raise ConfigError(f"out={settings.out} must end in .png: set out=<name>.png")
    settings.out = _absolute(settings.out)


def _check_predict(settings: Predict) -> None:
    if not settings.outputs:
        raise ConfigError("outputs=[] writes nothing: name one or more, such as outputs=[classes,overlay]")
    if settings.resize is not None and settings.window is not None:
        raise ConfigError("resize and window are both set: the image is either resized as a whole or cut into windows")
    check_stretch(settings.stretch)
    settings.outputs = list(dict.fromkeys(settings.outputs))
    settings.output = _absolute(settings.output)
    settings.checkpoint = str(find_checkpoint(settings.checkpoint))


def _check_convert(settings: Convert) -> None:
    """Settings that don't go together, and a file that would be replaced."""
    if settings.to is None and settings.out is not None:
        raise ConfigError("out says where to write, but not what: add to=safetensors or to=pth")
    if settings.to != "safetensors" and (settings.variant or settings.dataset):
        raise ConfigError("variant and dataset go with to=safetensors only: leave them out")
    if settings.to is None:
        return
    out = Path(settings.out or Path(settings.file).with_suffix(f".{settings.to}"))
    if out.suffix != f".{settings.to}":
        raise ConfigError(f"out={out} must end in .{settings.to}, by which the file is recognised")
    for path in (out, out.with_suffix(".json")) if settings.to == "safetensors" else (out,):
        if path.exists():
            raise ConfigError(f"{path} exists already: give another file by out=<file>")
    settings.out = str(out)


_CHECKS: dict[type[Settings], Callable[[Any], None]] = {
    Train: _check_train,
    Evaluate: _check_evaluate,
    PrepareJob: _check_prepare,
    Preview: _check_preview,
    Predict: _check_predict,
    Convert: _check_convert,
}


# Files


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Weights file that `checkpoint` stands for: the file itself, or a run's best one, otherwise its last one.

    Raises:
        ConfigError: neither such a file nor a run folder with a checkpoint.
    """
    path = Path(checkpoint).expanduser().absolute()
    if path.is_file():
        if path.suffix == ".safetensors":
            return path
        raise ConfigError(
            f"checkpoint={checkpoint} must be a run folder or a .safetensors file of a run; "
            "pfseg convert makes one of other weights files"
        )
    if not path.is_dir():
        raise ConfigError(
            f"checkpoint={checkpoint} does not exist (looked in {path}): give a run folder or a .safetensors file"
        )
    for name in ("best", "last"):
        if (file := path / "checkpoints" / f"{name}.safetensors").is_file():
            return file
    raise ConfigError(
        f"checkpoint={checkpoint} holds no checkpoints/best.safetensors or last.safetensors: give a run folder, "
        "outputs/<name>/<date>/<time>, that has saved at least once"
    )


def existing(key: str, given: str, what: str, *, folder: bool = False) -> Path:
    """Absolute path of a file or folder that the setting `key` names.

    Raises:
        ConfigError: it doesn't exist, or is of the other kind.
    """
    path = Path(given).expanduser().absolute()
    if path.is_dir() if folder else path.is_file():
        return path
    fault = "is not a " + ("folder" if folder else "file") if path.exists() else "does not exist"
    raise ConfigError(f"{key}={given} {fault} (looked in {path}): set {key}=<{what}>")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _shown_size(size: Sequence[int]) -> str:
    return str(size[0]) if size[0] == size[1] else str(list(size))
