"""From composed settings to checked, typed ones: what follows from several settings, and what can't go together."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pfseg.config.commands import SCHEMAS, Convert, Export, Predict, PrepareJob, Preview
from pfseg.config.compose import first_line
from pfseg.config.data_settings import Dataset, FolderData
from pfseg.config.loss_settings import LossSettings, PFNetLossSettings
from pfseg.config.model_settings import Model, PFNetSettings
from pfseg.config.run_settings import SclPoly
from pfseg.config.schema import Evaluate, EvaluateData, Train, TrainBase
from pfseg.config.settings import Settings
from pfseg.config.stored import check_fits, resumable, training_settings
from pfseg.config.validation import as_typed, description, validate
from pfseg.data.base import parse_classes
from pfseg.data.cache import cache_folder
from pfseg.data.tiling import windows
from pfseg.devices import plan_ranks
from pfseg.errors import ConfigError
from pfseg.weights import published
from pfseg.weights.onnx_file import read_onnx
from pfseg.weights.sources import fetch, is_source

S = TypeVar("S", bound=Settings)
_WEIGHTS = {"pretrained": "a backbone file", "init": "a checkpoint or weights of a whole network"}


def check(cfg: DictConfig) -> Settings:
    """Check and resolve settings that were composed from a command's file in conf/, such as train.yaml.

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
        raw = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a value'} cannot be resolved: {first_line(error)}") from error
    for key in sorted(OmegaConf.missing_keys(OmegaConf.create(raw))):
        raise ConfigError(f"{key} is not set: add {key}=<{description(schema, raw, key)}>")
    if schema is PrepareJob and "prepare" not in raw["dataset"]:
        raise ConfigError(f"dataset={raw['dataset'].get('name')} has no files to cut: choose another data set")
    settings = validate(raw, schema)
    if schema in _CHECKS:
        _CHECKS[schema](settings)
    return settings


def checked(cfg: DictConfig, schema: type[S]) -> S:
    """Check composed settings that are of the class `schema`; see `check`."""
    settings = check(cfg)
    assert isinstance(settings, schema)
    return settings


def _check_train(settings: Train) -> None:
    model, schedule, epochs = settings.model, settings.schedule, settings.trainer.max_epochs
    if epochs is None and settings.trainer.max_steps is None:
        raise ConfigError("trainer.max_epochs and trainer.max_steps are both null: set one of them")
    if getattr(schedule, "legacy", False) and schedule.per != "epoch":
        raise ConfigError("schedule.legacy=true goes with epochs only: set schedule.per=epoch or schedule.legacy=false")
    if isinstance(schedule, SclPoly) and epochs is not None and schedule.relax_epoch >= epochs:
        raise ConfigError(
            f"schedule.relax_epoch={schedule.relax_epoch} is not below trainer.max_epochs={epochs}: lower it"
        )
    _check_samples(settings)
    if model.pretrained is not None and model.init is not None:
        raise ConfigError("model.pretrained and model.init are both set: init has a backbone, leave out the other")
    for name, what in _WEIGHTS.items():
        if name == "pretrained" and model.pretrained == published.NAME:
            _check_published(model)
        elif (file := getattr(model, name)) is not None:
            setattr(model, name, _existing(f"model.{name}", file, f"{what} (.pth, .pkl, .safetensors)"))
    if settings.resume is not None:
        folder = resumable(settings.resume)
        settings.resume = str(folder)
        last = folder / "checkpoints" / "last.safetensors"
        check_fits(last, training_settings(last, trust=True), settings)
    _check_job(settings)


def _check_published(model: Model) -> None:
    """Check that there are public weights of a network's backbone."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:  # a network of the user's own
        published.address(model.target, {})
    else:
        published.address(backbone.target, backbone.values())


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
                f"dataset.{key}={_shown_size(size)} is too small for model.variant={getattr(model, 'variant', '')}, "
                f"which takes {least} px a side at least: set dataset.{key}={least}{other}"
            )
    _check_bands(data)
    _find_data(data)


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


def _check_job(settings: Train | Evaluate) -> None:
    """Check loggers, ranks and devices."""
    if settings.logger.tensorboard is not None and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("logger=tensorboard needs the package tensorboardX: pip install 'pfseg[tensorboard]'")
    settings.ranks = plan_ranks(settings)[0]
    if settings.launch.name == "inline" and settings.ranks != 1:
        raise ConfigError(f"launch=inline runs one rank, got ranks={settings.ranks}: add ranks=1 or use launch=mpi")


def _check_evaluate(settings: Evaluate) -> None:
    paths = _find_checkpoints(settings)
    plain = (settings.score, settings.overlap, settings.scales, settings.flips) == ("patches", 0, [1], "none")
    if settings.calibrate and not plain:
        raise ConfigError("calibrate=true takes windows as validation does: leave out score, overlap, scales and flips")
    _find_data(settings.dataset)
    changes = dataset_changes(settings)
    _check_scores(settings, {path: training_settings(path, changes, trust=settings.trust) for path in paths})
    _check_job(settings)


def _find_checkpoints(settings: Evaluate | Predict) -> list[Path]:
    """The files that `checkpoint` stands for, which become its value; raises ConfigError."""
    given = settings.checkpoint
    paths = [find_checkpoint(each) for each in ([given] if isinstance(given, str) else given)]
    if not paths:
        raise ConfigError("checkpoint=[] names none: give run folders or .safetensors files")
    settings.checkpoint = str(paths[0]) if isinstance(given, str) else [str(path) for path in paths]
    return paths


def dataset_changes(settings: Evaluate | Predict | Export) -> dict[str, Any]:
    """The settings of the data set that replace a checkpoint's."""
    changes = settings.dataset.dump()
    return {key: value for key, value in changes.items() if key != "root" or value is not None}


def _check_scores(settings: Evaluate, stored: Mapping[Path, Train]) -> None:
    """Check an evaluation against the settings that each checkpoint was trained with."""
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
        if path.suffix == ".onnx":
            _check_onnx(settings, path)
            continue
        size = train.dataset.eval_size if settings.eval_size is None else settings.eval_size
        _check_window(settings, None if size == "whole" else size, path, smallest_side(train.model))


def _check_onnx(settings: Evaluate, path: Path) -> None:
    """Check what an ONNX file can't do, which takes images of one size in one process."""
    size = read_onnx(path).size
    if settings.eval_size not in (None, (size, size)) or settings.scales != [1.0]:
        raise ConfigError(
            f"{path} takes images of {size}x{size} px only: leave out eval_size and scales, or export the checkpoint "
            "at another size (pfseg export size=...)"
        )
    if settings.ranks not in ("auto", 1):
        raise ConfigError(f"ranks={settings.ranks}: {path} is scored by one rank, as ONNX Runtime uses all cores")
    settings.ranks = 1


def _check_window(settings: Evaluate, window: tuple[int, int] | None, path: Path, least: int) -> None:
    scale = min(settings.scales)
    if window is None and settings.overlap:
        raise ConfigError(
            f"overlap={settings.overlap:g} needs windows, but whole images are predicted: set eval_size=<pixels> or "
            "overlap=0"
        )
    if window is not None and round(min(window) * scale) < least:
        raise ConfigError(
            f"eval_size={_shown_size(window)}{f' at scale {scale:g}' if scale != 1 else ''} is too small for {path}, "
            f"whose network takes {least} px a side at least: set "
            f"eval_size={math.ceil(least / scale / 32) * 32}{' or larger scales' * (scale != 1)}"
        )


def _check_prepare(settings: PrepareJob) -> None:
    parse_classes(settings.dataset.classes)
    settings.src = _existing("src", settings.src, "the folder of the archive or the scenes", folder=True)
    settings.out = _absolute(settings.out)
    settings.dataset.root = settings.src
    _check_display(settings.dataset)
    prepare = settings.dataset.prepare
    if prepare.size is not None:
        prepare.stride = prepare.stride or prepare.size
        windows((1, 1), prepare.size, prepare.stride)
    elif prepare.stride is not None:
        raise ConfigError(
            f"dataset.prepare.stride={_shown_size(prepare.stride)} needs a size: set dataset.prepare.size"
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
    settings.outputs = list(dict.fromkeys(settings.outputs))
    settings.output = _absolute(settings.output)
    paths = _find_checkpoints(settings)
    settings.ranks = plan_ranks(settings)[0]
    if settings.ranks > 1 and (exported := [path for path in paths if path.suffix == ".onnx"]):
        raise ConfigError(f"ranks={settings.ranks}: {exported[0]} runs in one rank, as ONNX Runtime uses all cores")


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


def _check_export(settings: Export) -> None:
    out = Path(settings.out).expanduser().absolute()
    if settings.format == "onnx" and out.suffix != ".onnx":
        raise ConfigError(
            f"out={settings.out} must end in .onnx, by which the file is recognised, or add format=folder"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists already: give another {settings.format} by out=<path>")
    path = find_checkpoint(settings.checkpoint)
    if path.suffix == ".onnx":
        raise ConfigError(f"checkpoint={settings.checkpoint} is an ONNX file already: give the run that it is from")
    if (settings.precision == "int8") != (settings.images is not None):
        raise ConfigError("precision=int8 and images go together: the values of some images set the range of integers")
    if settings.push is not None and (settings.format != "folder" or settings.push.count("/") != 1):
        raise ConfigError(f"push={settings.push}: expected owner/name, and format=folder")
    settings.out, settings.checkpoint = str(out), str(path)
    _find_data(settings.dataset)


_CHECKS: dict[type[Settings], Callable[[Any], None]] = {
    Train: _check_train,
    Evaluate: _check_evaluate,
    PrepareJob: _check_prepare,
    Preview: _check_preview,
    Predict: _check_predict,
    Convert: _check_convert,
    Export: _check_export,
}


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Weights file that `checkpoint` stands for: the file itself, or a run's best one, otherwise its last one.

    It may also be a model folder, or be shared by others; see `pfseg.weights.sources.fetch`.

    Raises:
        ConfigError: neither such a file nor a folder with a checkpoint.
        CheckpointError: what others share can't be downloaded.
    """
    if is_source(str(checkpoint)):
        checkpoint = fetch(str(checkpoint), cache_folder())
    path = Path(checkpoint).expanduser().absolute()
    below = ("checkpoints/best", "checkpoints/last", "model", "best", "last")  # of a run, a model folder, an artifact
    for file in (path, *(path / f"{name}.safetensors" for name in below)):
        if file.is_file() and file.suffix in (".safetensors", ".onnx"):
            return file
    if path.is_file():
        fault = (
            "must be a run folder, a .safetensors file of a run or an .onnx file of pfseg export; pfseg convert makes "
            "one of other weights files"
        )
    elif path.is_dir():
        fault = (
            "holds no checkpoints/best.safetensors or last.safetensors: give a run folder, "
            "outputs/<name>/<date>/<time>, that has saved at least once, or a model folder with model.safetensors"
        )
    else:
        fault = f"does not exist (looked in {path}): give a run folder or a .safetensors file"
    raise ConfigError(f"checkpoint={checkpoint} {fault}")


def _find_data(data: Dataset | EvaluateData) -> None:
    """Make the folder of the data set absolute."""
    if data.root is not None:
        data.root = _existing("dataset.root", data.root, "the folder of the data set", folder=True)


def _existing(key: str, given: str, what: str, *, folder: bool = False) -> str:
    """Absolute path of a file or folder that the setting `key` names; raises ConfigError for any other."""
    path = Path(given).expanduser().absolute()
    if path.is_dir() if folder else path.is_file():
        return str(path)
    fault = f"is not a {'folder' if folder else 'file'}" if path.exists() else "does not exist"
    raise ConfigError(f"{key}={given} {fault} (looked in {path}): set {key}=<{what}>")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _shown_size(size: Sequence[int]) -> str:
    return as_typed(size[0] if size[0] == size[1] else list(size))
