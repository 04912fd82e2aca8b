"""Checks of a configuration across its keys, and what follows from several of them; each raises ConfigError."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfseg.data.base import check_stretch, parse_classes
from pfseg.data.tiling import windows
from pfseg.errors import CheckpointError, ConfigError

_OWN = ("pfseg.models.", "pfseg.data.")  # what a checkpoint may name without trust


def check_lengths(config: Mapping[str, Any]) -> None:
    """Refuse a training without an end, and a schedule that does not fit its length."""
    trainer, schedule = config["trainer"], config["schedule"]
    epochs = trainer["max_epochs"]
    if epochs is None and trainer["max_steps"] is None:
        raise ConfigError(
            "trainer.max_epochs and trainer.max_steps are both null: set one, such as trainer.max_epochs=20"
        )
    if schedule.get("legacy") and schedule["per"] != "epoch":
        raise ConfigError("schedule.legacy=true goes with epochs only: set schedule.per=epoch or schedule.legacy=false")
    relax = schedule.get("relax_epoch")
    if relax is not None and epochs is not None and relax >= epochs:
        raise ConfigError(f"schedule.relax_epoch={relax} is not below trainer.max_epochs={epochs}: lower it")


def check_classes(config: dict[str, Any]) -> None:
    """Fill in `model.num_classes`; refuse another number than the class table's."""
    count = len(parse_classes(config["dataset"]["classes"]))
    wanted = config["model"]["num_classes"]
    if wanted not in (None, count):
        raise ConfigError(
            f"model.num_classes={wanted}, but dataset.classes of {config['dataset']['name']} lists {count}: "
            f"set model.num_classes={count}, or null to follow the data set"
        )
    config["model"]["num_classes"] = count


def check_initial(model: dict[str, Any]) -> None:
    """Fill in the paths of the weights to start from; refuse two of them, and files that aren't there."""
    if model["pretrained"] is not None and model["init"] is not None:
        raise ConfigError(
            "model.pretrained and model.init are both set: model.init holds a backbone already, leave out the other"
        )
    for key, what in (("pretrained", "a backbone file"), ("init", "a checkpoint or weights of a whole network")):
        if (file := model[key]) is not None:
            model[key] = str(existing(f"model.{key}", file, f"{what} (.pth, .pkl, .safetensors)"))


def check_sizes(config: dict[str, Any]) -> None:
    """Turn crop and window into [height, width]; refuse what is too small for the network."""
    dataset, model = config["dataset"], config["model"]
    least = smallest_side(model)
    for key in ("crop_size", "eval_size"):
        if dataset[key] is None:
            continue
        given, dataset[key] = dataset[key], pair(dataset[key])
        if min(dataset[key]) < least:
            other = ", or use model.variant=pytorch (64 px)" if least > 64 and min(dataset[key]) >= 64 else ""
            raise ConfigError(
                f"dataset.{key}={given} is too small for model.variant={model['variant']}, which takes {least} px a "
                f"side at least: set dataset.{key}={least}{other}"
            )


def smallest_side(model: Mapping[str, Any]) -> int:
    """Least number of pixels a side that the network of `model` takes."""
    jittor = 32 * max(model.get("salient_pool", 1), model.get("edge_pool", 1))
    return {"pytorch": 64, "jittor": jittor}.get(model.get("variant", ""), 1)


def check_evaluation(config: dict[str, Any], stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Turn the window into [height, width]; refuse what the checkpoints, or several settings together, don't allow.

    Args:
        config: of an evaluation.
        stored: the configuration that each checkpoint was trained with, by its path.
    """
    if not stored:
        raise ConfigError("checkpoint=[] names none: give run folders or .safetensors files")
    size = config["eval_size"]
    if size not in (None, "whole"):
        config["eval_size"] = pair(size)
    tables = {path: [info.name for info in parse_classes(one["dataset"]["classes"])] for path, one in stored.items()}
    (first, names), *others = tables.items()
    for path, other in others:
        if other != names:
            raise ConfigError(
                f"checkpoint: {first} has {len(names)} classes ({', '.join(names)}), {path} has {len(other)} "
                f"({', '.join(other)}); only checkpoints of the same classes can be compared"
            )
    if unknown := [name for name in config["exclude"] if name not in names]:
        raise ConfigError(f"exclude: unknown class {unknown[0]!r}; the classes are {', '.join(names)}")
    if not set(names) - set(config["exclude"]):
        raise ConfigError("exclude names every class, so the means have nothing left: leave one of them in")
    for path, one in stored.items():
        if not config["trust"]:
            refuse_foreign(path, [one["model"], one["dataset"]])
        _check_window(config, path, one)


def refuse_foreign(path: str | Path, settings: Any) -> None:
    """Refuse a checkpoint whose settings name a class outside pfseg: building it would run whatever the file says.

    Args:
        path: of the checkpoint.
        settings: as stored in it.

    Raises:
        CheckpointError: a `_target_` in the settings is not pfseg's own.
    """
    if isinstance(settings, dict):
        target = settings.get("_target_")
        if target is not None and not str(target).startswith(_OWN):
            raise CheckpointError(
                f"{path} wants to run {target}, which is no part of pfseg: refused, nothing was executed; "
                "add trust=true if you know where the file comes from"
            )
    parts = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for part in parts:
        refuse_foreign(path, part)


def _check_window(config: Mapping[str, Any], path: str, stored: Mapping[str, Any]) -> None:
    size = stored["dataset"]["eval_size"] if config["eval_size"] is None else config["eval_size"]
    window = None if size in (None, "whole") else pair(size)
    if window is None and config["overlap"]:
        raise ConfigError(
            f"overlap={config['overlap']:g} needs windows, but whole images are predicted: set eval_size=<pixels> or "
            "overlap=0"
        )
    if not config["scales"]:
        raise ConfigError("scales=[]: expected one or more numbers above 0, such as [0.75,1,1.25]")
    least, scale = smallest_side(stored["model"]), min(config["scales"])
    if window is not None and round(min(window) * scale) < least:
        raise ConfigError(
            f"eval_size={window[0] if window[0] == window[1] else window}"
            f"{f' at scale {scale:g}' if scale != 1 else ''} is too small for {path}, whose network takes {least} px a "
            f"side at least: set eval_size={math.ceil(least / scale / 32) * 32}{' or larger scales' * (scale != 1)}"
        )


def check_ranges(config: Mapping[str, Any]) -> None:
    """Refuse ranges that are upside down."""
    for group, key in (("dataset", "scale_range"), ("augment", "scale_range"), ("augment", "blur")):
        bounds = config[group].get(key)
        if bounds is not None and (bounds[0] > bounds[1] or (key == "scale_range" and bounds[0] <= 0)):
            raise ConfigError(f"{group}.{key}={bounds}: expected [low, high], both above 0 and in this order")


def check_loggers(loggers: Mapping[str, Any]) -> None:
    """Refuse a logger whose package is not installed."""
    if "tensorboard" in loggers and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "logger=tensorboard needs tensorboardX, which is not installed: pip install 'pfseg[tensorboard]'"
        )


def check_preparation(config: dict[str, Any]) -> None:
    """Fill in paths, window and stride of a preparation; refuse those that can't be."""
    parse_classes(config["dataset"]["classes"])
    config["src"] = str(existing("src", config["src"], "the folder of the archive or the scenes", folder=True))
    config["out"] = str(Path(config["out"]).expanduser().absolute())
    config["dataset"]["root"] = config["src"]
    prepare = config["dataset"]["prepare"]
    for key in ("size", "stride"):
        if prepare[key] is not None:
            prepare[key] = pair(prepare[key])
    if prepare["size"] is not None:
        prepare["stride"] = prepare["stride"] or prepare["size"]
        windows((1, 1), tuple(prepare["size"]), tuple(prepare["stride"]))
    elif prepare["stride"] is not None:
        raise ConfigError(
            f"dataset.prepare.stride={prepare['stride']} needs a size: set dataset.prepare.size, or stride=null"
        )


def check_preview(config: dict[str, Any]) -> None:
    """Check and fill in what training samples depend on; ranks, devices and weights are of no account."""
    check_classes(config)
    check_sizes(config)
    check_ranges(config)
    if Path(config["out"]).suffix.lower() != ".png":
        raise ConfigError(f"out={config['out']} is no .png file: set out=<name>.png")
    config["out"] = str(Path(config["out"]).expanduser().absolute())
    if (root := config["dataset"]["root"]) is not None:
        config["dataset"]["root"] = str(existing("dataset.root", root, "the folder of the data set", folder=True))


def check_prediction(config: dict[str, Any]) -> None:
    """Fill in paths and sizes of a prediction; refuse settings that don't go together."""
    if not config["outputs"]:
        raise ConfigError("outputs=[] writes nothing: name one or more, such as outputs=[classes,overlay]")
    if config["resize"] is not None and config["window"] is not None:
        raise ConfigError("resize and window are both set: the image is either resized as a whole or cut into windows")
    check_stretch(config["stretch"])
    config["outputs"] = list(dict.fromkeys(config["outputs"]))
    config["output"] = str(Path(config["output"]).expanduser().absolute())
    for key in ("window", "resize"):
        if config[key] is not None:
            config[key] = pair(config[key])


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
            f"checkpoint={checkpoint} is no .safetensors file: give a run folder or such a file of a run; "
            "pfseg convert makes one of other weights files"
        )
    if not path.is_dir():
        raise ConfigError(
            f"checkpoint={checkpoint} does not exist (looked in {path}): give a run folder or a .safetensors file"
        )
    for name in ("best", "last"):
        if (found := path / "checkpoints" / f"{name}.safetensors").is_file():
            return found
    raise ConfigError(
        f"checkpoint={checkpoint} holds no checkpoints/best.safetensors or last.safetensors: give a run folder, "
        "outputs/<name>/<date>/<time>, that has saved at least once"
    )


def existing(key: str, given: str, what: str, *, folder: bool = False) -> Path:
    """Absolute path of a file or folder that the key `key` gives; refuse one that isn't there."""
    path = Path(given).expanduser().absolute()
    if path.is_dir() if folder else path.is_file():
        return path
    fault = "is not a " + ("folder" if folder else "file") if path.exists() else "does not exist"
    raise ConfigError(f"{key}={given} {fault} (looked in {path}): set {key}=<{what}>")


def pair(size: int | list[int]) -> list[int]:
    """A size as [height, width]."""
    return [size, size] if isinstance(size, int) else size
