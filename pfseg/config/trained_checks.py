"""Checks of settings of what is done with trained networks: scoring, maps, conversion and export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pfseg.config.commands import Convert, Export, Predict
from pfseg.config.paths import absolute, find_data, shown_size
from pfseg.config.schema import Application, Evaluate, Train
from pfseg.config.stored import training_settings
from pfseg.config.training_checks import check_job, smallest_side
from pfseg.data.base import parse_classes
from pfseg.devices import plan_ranks
from pfseg.errors import ConfigError
from pfseg.weights.onnx_file import read_onnx
from pfseg.weights.sources import find_checkpoint


def check_evaluate(settings: Evaluate) -> None:
    """Check an evaluation against its checkpoints, which are found."""
    paths = _find_checkpoints(settings)
    plain = (settings.score, settings.overlap, settings.scales, settings.flips) == ("patches", 0, [1], "none")
    if settings.calibrate and not plain:
        raise ConfigError("calibrate=true takes windows as validation does: leave out score, overlap, scales and flips")
    find_data(settings.dataset)
    changes = settings.dataset.changes()
    _check_scores(settings, {path: training_settings(path, changes, trust=settings.trust) for path in paths})
    check_job(settings)


def _find_checkpoints(settings: Application) -> list[Path]:
    """The files that `checkpoint` stands for, which become its value; raises ConfigError."""
    paths = [find_checkpoint(each) for each in settings.checkpoints]
    if not paths:
        raise ConfigError("checkpoint=[] is empty: give run folders or .safetensors files")
    settings.checkpoint = str(paths[0]) if isinstance(settings.checkpoint, str) else [str(path) for path in paths]
    return paths


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
        raise ConfigError("exclude names every class, which leaves nothing to average: keep at least one class")
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
        raise _one_rank(settings.ranks, path)
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
            f"eval_size={shown_size(window)}{f' at scale {scale:g}' if scale != 1 else ''} is too small for {path}, "
            f"whose network takes {least} px a side at least: set "
            f"eval_size={math.ceil(least / scale / 32) * 32}{' or larger scales' * (scale != 1)}"
        )


def check_predict(settings: Predict) -> None:
    """Find the checkpoints, and check what each can do."""
    if not settings.outputs:
        raise ConfigError("outputs=[] writes nothing: name one or more, such as outputs=[classes,overlay]")
    if settings.resize is not None and settings.window is not None:
        raise ConfigError(
            "resize and window are both set: leave out one; an image is either resized as a whole or cut into windows"
        )
    settings.outputs = list(dict.fromkeys(settings.outputs))
    settings.output = absolute(settings.output)
    paths = _find_checkpoints(settings)
    settings.ranks = plan_ranks(settings)[0]
    if settings.ranks > 1 and (exported := [path for path in paths if path.suffix == ".onnx"]):
        raise _one_rank(settings.ranks, exported[0])


def _one_rank(ranks: int | str, path: Path) -> ConfigError:
    return ConfigError(f"ranks={ranks}: {path} runs in one rank, because ONNX Runtime uses all cores: leave out ranks")


def check_convert(settings: Convert) -> None:
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


def check_export(settings: Export) -> None:
    """Find the checkpoint, and check what it becomes."""
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
    find_data(settings.dataset)
