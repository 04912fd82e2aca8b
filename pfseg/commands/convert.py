"""`pfseg convert`: look into weights files and convert them.

Reads PyTorch's `.pth` (zip and legacy), Jittor's `.pkl` and safetensors without executing anything in them. A `.pth` or
`.pkl` doesn't say which data and which variant of the network it was trained with: a checkpoint, which does, is made
with `variant` and `dataset`. Checkpoints of other projects are recognised, see `pfseg.weights.contents`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from rich.text import Text

from pfseg import __version__
from pfseg.config.check import checked
from pfseg.config.commands import Convert
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.validation import as_typed
from pfseg.data.base import parse_classes
from pfseg.errors import CheckpointError, ConfigError
from pfseg.files import shown, write_atomic
from pfseg.tracking import terminal
from pfseg.weights.checkpoint import Meta, read_meta, save_checkpoint
from pfseg.weights.contents import Contents, recognise
from pfseg.weights.matching import match_weights
from pfseg.weights.reading import read_weights
from pfseg.weights.torch_file import torch_bytes

_CHOOSE_VARIANT = (
    "variant is not given, and the file can't tell: the two families of published checkpoints differ in their pools "
    "alone, and the wrong one scores badly without complaint. Give variant=pytorch for a file of the official "
    "repository (.pth) or of pfseg's default, variant=jittor for one of the Jittor port (.pkl)"
)


def run(settings: Convert) -> None:
    """Show what a weights file holds, and convert it if the settings say so."""
    path = Path(settings.file)
    weights = read_weights(path)
    contents, meta = recognise(weights), read_meta(path)
    console = terminal.console()
    table = terminal.table(title=str(path))
    for name, text in _rows(weights, contents, meta):
        table.add_row(Text(name, style="bold"), text)
    console.print(table)
    if settings.to is None or settings.out is None:
        return
    out = Path(settings.out)
    if settings.to == "pth":
        write_atomic(out, torch_bytes(weights))
    else:
        save_checkpoint(out, *_make_checkpoint(settings, weights, contents, meta))
    terminal.line(console, f"written: {shown(out.absolute())}")
    if settings.to == "safetensors":
        command = f"pfseg evaluate checkpoint={shown(out.absolute())} dataset.root=<folder>"
        terminal.line(console, f"score it with: {command}")


def _make_checkpoint(
    settings: Convert, weights: dict[str, np.ndarray], contents: Contents, meta: Meta | None
) -> tuple[dict[str, np.ndarray], Meta]:
    """Arrays and metadata of a checkpoint that can be evaluated."""
    path = Path(settings.file)
    if meta is not None:
        raise CheckpointError(f"{path} is a checkpoint of pfseg already: pfseg evaluate takes it as it is")
    if contents.model is None or contents.num_classes is None:
        raise CheckpointError(
            f"{path} holds no whole PFNet on one of its backbones, nor another project's network that pfseg knows, "
            "which a checkpoint needs; a backbone alone is given to pfseg train as it is, by model.pretrained=<file>"
        )
    if settings.variant is None and contents.is_pfnet:
        raise ConfigError(_CHOOSE_VARIANT)
    if settings.dataset is None:
        raise ConfigError(
            f"dataset is not given, and the file can't tell: name the file of conf/dataset whose "
            f"{contents.num_classes} classes the weights were trained on, such as dataset=isaid"
        )
    from pfseg.build import build_model  # starts Jittor

    training = _training(settings, contents)
    network = build_model(training.model, contents.num_classes, training.dataset.num_bands)
    shapes = {key: tuple(var.shape) for key, var in network.state_dict().items()}
    match = match_weights(shapes, weights, contents.rename)
    if match.missing or match.mismatched or match.widened:
        report = match.report().replace("\n", "; ")
        raise CheckpointError(f"{path} doesn't fit model={training.model.name}: {report}")
    terminal.line(terminal.console(), match.report())
    return match.loaded, {
        "progress": {"step": 0},
        "epoch": 0,
        "scores": {},
        "config": training.dump(),
        "pfseg": __version__,
        "source": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    }


def _training(settings: Convert, contents: Contents) -> Train:
    """The settings of a training on the given data set; the data may lie anywhere, or not be there at all."""
    given = [f"model={contents.model}", *_options(contents)]
    given += [f"model.variant={settings.variant}"] if contents.is_pfnet else []
    given += ["gpus=0", "ranks=1", "logger=none", "dataset.crop_size=448"]  # the least that both variants take
    training = checked(compose("train", given), Train)
    assert settings.dataset is not None
    training.dataset = settings.dataset
    training.name = f"{training.model.name}_{training.dataset.name}"
    count = len(parse_classes(training.dataset.classes))
    if count != contents.num_classes:
        raise ConfigError(
            f"{settings.file} has {contents.num_classes} classes, dataset={training.dataset.name} has {count}: name "
            "the data set that it was trained on, or give its classes by dataset.classes=..."
        )
    training.model.num_classes = count
    return training


def _options(contents: Contents) -> list[str]:
    return [f"model.{key}={as_typed(value)}" for key, value in contents.settings.items()]


def _rows(weights: dict[str, np.ndarray], contents: Contents, meta: Meta | None) -> list[tuple[str, str]]:
    """What a file holds, in words."""
    statistics = {name for name in weights if name.endswith(("running_mean", "running_var"))}
    parameters = sum(array.size for name, array in weights.items() if name not in statistics)
    types = sorted({array.dtype.name for array in weights.values()})
    rows = [
        ("arrays", f"{len(weights)}, of them {len(statistics)} running statistics of BatchNorm"),
        ("parameters", f"{parameters:,} ({parameters / 1e6:.2f} M), {', '.join(types)}"),
    ]
    if contents.num_classes is None:
        return [*rows, ("backbone", contents.title), ("head", "none: a backbone alone goes to model.pretrained")]
    choice = [f"model={contents.model}"] if contents.model else []
    rows += [
        ("network", contents.title),
        ("built by", " ".join([*choice, *_options(contents)])),
        ("classes", str(contents.num_classes)),
    ]
    if meta is None:
        pfnet = "variant, edge points and pools, for which the model's are taken; "
        return [*rows, ("not in the file", f"{pfnet if contents.is_pfnet else ''}data set")]
    model, dataset = (meta["config"].get(group, {}) for group in ("model", "dataset"))
    sizes = ("variant", "num_edge_points", "edge_pool", "salient_pool")
    rows.append(("settings", ", ".join(f"{key}={model[key]}" for key in sizes if key in model)))
    return [*rows, ("data set", str(dataset.get("name"))), ("step", str(meta.get("progress", {}).get("step")))]
