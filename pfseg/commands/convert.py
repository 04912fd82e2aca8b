"""Look into weights files and convert them: `pfseg convert <file> [--to safetensors|pth]`.

Reads PyTorch's `.pth` (zip and legacy), Jittor's `.pkl` and safetensors without executing anything in them. A `.pth` or
`.pkl` doesn't say which data and which variant of the network it was trained with: a checkpoint, which does, is made
with `--variant` and `--dataset`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pfseg import __version__
from pfseg.config.compose import check, compose
from pfseg.errors import CheckpointError, ConfigError, JobError, PfsegError
from pfseg.tracking.console import PLAIN_WIDTH
from pfseg.tracking.records import shown, write_atomic
from pfseg.weights.checkpoint import read_meta, save_checkpoint
from pfseg.weights.matching import match_weights
from pfseg.weights.reading import read_weights
from pfseg.weights.torch_file import torch_bytes

# (kind of block, number of blocks in layer1..layer4) -> file of conf/model
_MODELS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "pfnet_r18",
    ("bottleneck", (3, 4, 6, 3)): "pfnet_r50",
    ("bottleneck", (3, 4, 23, 3)): "pfnet_r101",
    ("res2net", (3, 4, 23, 3)): "pfnet_r2n101",
}
_BACKBONES = {
    "pfnet_r18": "ResNet-18, deep stem",
    "pfnet_r50": "ResNet-50, deep stem",
    "pfnet_r101": "ResNet-101, deep stem",
    "pfnet_r2n101": "Res2Net-101 26w x 4s",
}
_CLASSIFIER = "head.conv_last.1.weight"
_MATCHER = "head.fpn_out_align.0.down_h.weight"
_CHOOSE_VARIANT = (
    "--variant is not given, and the file can't tell: the two families of published checkpoints have equal names and "
    "shapes but pool differently, and the wrong one loads without complaint and scores badly (a third of the pixels "
    "gets another label). Give --variant pytorch for a file of the official repository (.pth, pools of 1, 2, 3, 6) or "
    "of pfseg's default, --variant jittor for one of the Jittor port (.pkl, pools of 1, 2, 3, 7)"
)


@dataclass(frozen=True)
class Contents:
    """What weights are of, as far as names and shapes tell.

    Attributes:
        model: file of conf/model; None for a backbone that none of them has.
        num_classes: None where there is no whole PFNet.
        fpn_dim: channels of the pyramid; likewise.
        match_dim: channels of the point matcher; likewise.
    """

    model: str | None
    num_classes: int | None = None
    fpn_dim: int | None = None
    match_dim: int | None = None


def identify(weights: Mapping[str, np.ndarray]) -> Contents:
    """Tell backbone, class count and channels of weights by their names and shapes."""
    model = _identify_backbone(weights)
    classifier, matcher = weights.get(_CLASSIFIER), weights.get(_MATCHER)
    if classifier is None or matcher is None or classifier.ndim < 2:
        return Contents(model)
    return Contents(model, classifier.shape[0], classifier.shape[1], matcher.shape[0])


def _identify_backbone(weights: Mapping[str, np.ndarray]) -> str | None:
    blocks: dict[str, set[str]] = {f"layer{index}": set() for index in range(1, 5)}
    for name in weights:
        layer, _, rest = name.partition(".")
        if layer in blocks:
            blocks[layer].add(rest.partition(".")[0])
    kind = "basic"
    if any(name.startswith("layer1.0.conv3.") for name in weights):
        kind = "res2net" if any(name.startswith("layer1.0.convs.") for name in weights) else "bottleneck"
    deep = "layer0.0.0.weight" in weights or "conv1.0.weight" in weights
    if deep == (kind == "res2net"):
        return None
    return _MODELS.get((kind, tuple(map(len, blocks.values()))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = _parser().parse_intermixed_args(argv)
    try:
        _convert(args)
    except PfsegError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfseg-convert", description="Show what a weights file holds, or convert it. Nothing in it is executed."
    )
    parser.add_argument("file", type=Path, help=".pth (zip or legacy), .pkl of Jittor, .safetensors")
    parser.add_argument("--to", choices=("safetensors", "pth"), help="without it the file is only shown")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write; default: beside the given one")
    parser.add_argument("--variant", choices=("pytorch", "jittor"), help="family that the weights belong to")
    parser.add_argument("--dataset", metavar="NAME", help="data set that they were trained on: a file of conf/dataset")
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="a further folder of YAML files")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="further ones, such as dataset.eval_size=896")
    return parser


def _convert(args: argparse.Namespace) -> None:
    out = _choose_output(args)
    weights = read_weights(args.file)
    contents, meta = identify(weights), read_meta(args.file)
    _show(args.file, weights, contents, meta)
    if out is None:
        return
    try:
        if args.to == "pth":
            write_atomic(out, torch_bytes(weights))
        else:
            save_checkpoint(out, *_make_checkpoint(args, weights, contents, meta))
    except (JobError, CheckpointError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if not isinstance(cause, OSError):
            raise
        raise JobError(f"{out} can't be written ({cause.strerror}): give another place by --out") from error
    console = _console()
    console.print(f"written: {shown(out.absolute())}", markup=False, highlight=False, soft_wrap=True)
    if args.to == "safetensors":
        command = f"python evaluate.py checkpoint={shown(out.absolute())} dataset.root=<folder>"
        console.print(f"score it with: {command}", markup=False, highlight=False, soft_wrap=True)


def _choose_output(args: argparse.Namespace) -> Path | None:
    """The file to write, None for none; refuse options that don't go together, and to replace a file."""
    if args.to is None and args.out is not None:
        raise ConfigError("--out says where, not what to write: add --to safetensors or --to pth")
    if args.to != "safetensors" and (args.variant or args.dataset or args.config_dir or args.settings):
        raise ConfigError(
            "--variant, --dataset, --config-dir and settings go with --to safetensors only: leave them out"
        )
    if args.to is None:
        return None
    out: Path = args.out or args.file.with_suffix(f".{args.to}")
    if out.suffix != f".{args.to}":
        raise ConfigError(f"--out {out} must end in .{args.to}, by which the file is recognised")
    for path in (out, out.with_suffix(".json")) if args.to == "safetensors" else (out,):
        if path.exists():
            raise ConfigError(f"{path} exists already: give another file by --out")
    return out


def _make_checkpoint(
    args: argparse.Namespace, weights: dict[str, np.ndarray], contents: Contents, meta: dict[str, Any] | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return arrays and metadata of a checkpoint that evaluate.py takes.

    Raises:
        ConfigError: the variant or the data set is not given, or has another number of classes.
        CheckpointError: no whole PFNet, or a checkpoint already.
    """
    if meta is not None:
        raise CheckpointError(f"{args.file} is a checkpoint of pfseg already: evaluate.py takes it as it is")
    if contents.model is None or contents.num_classes is None:
        raise CheckpointError(
            f"{args.file} holds no whole PFNet on one of its backbones, which a checkpoint needs; a backbone alone "
            "is given to train.py as it is, by model.pretrained=<file>"
        )
    if args.variant is None:
        raise ConfigError(_CHOOSE_VARIANT)
    if args.dataset is None:
        raise ConfigError(
            f"--dataset is not given, and the file can't tell: name the file of conf/dataset whose "
            f"{contents.num_classes} classes the weights were trained on, such as --dataset isaid"
        )
    config = _compose(args, contents)
    return _complete(args.file, weights, config), {
        "progress": {"step": 0},
        "epoch": 0,
        "scores": {},
        "config": config,
        "pfseg": __version__,
        "source": {"file": args.file.name, "sha256": hashlib.sha256(args.file.read_bytes()).hexdigest()},
    }


def _compose(args: argparse.Namespace, contents: Contents) -> dict[str, Any]:
    """The configuration of a training on the given data set; the data may lie anywhere, or not be there at all."""
    network = {"fpn_dim": contents.fpn_dim, "match_dim": contents.match_dim, "variant": args.variant}
    given = [f"dataset={args.dataset}", f"model={contents.model}"]
    given += [f"model.{key}={value}" for key, value in network.items()]
    given += ["gpus=0", "ranks=1", "logger=none", "dataset.root=.", *args.settings]
    config = check(compose("train", given, folder=args.config_dir))
    if not any(text.startswith("dataset.root=") for text in args.settings):
        config["dataset"]["root"] = None
    if (count := config["model"]["num_classes"]) != contents.num_classes:
        raise ConfigError(
            f"{args.file} has {contents.num_classes} classes, --dataset {args.dataset} has {count}: name the data set "
            "that it was trained on, or give its classes by dataset.classes=..."
        )
    return config


def _complete(path: Path, weights: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights that the network takes, each in its shape; refuse a file that lacks some."""
    from pfseg.build import build_model  # starts Jittor

    network = build_model(config["model"], config["model"]["num_classes"])
    match = match_weights({key: tuple(var.shape) for key, var in network.state_dict().items()}, weights)
    if match.missing or match.mismatched:
        report = match.report().replace("\n", "; ")
        raise CheckpointError(f"{path} doesn't fit model={config['model']['name']}: {report}")
    _console().print(match.report(), markup=False, highlight=False, soft_wrap=True)
    return match.loaded


def _show(path: Path, weights: dict[str, np.ndarray], contents: Contents, meta: dict[str, Any] | None) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False, title=Text(str(path)), title_justify="left")
    for name, text in _rows(weights, contents, meta):
        table.add_row(Text(name, style="bold"), Text(text, overflow="fold"))
    _console().print(table)


def _rows(weights: dict[str, np.ndarray], contents: Contents, meta: dict[str, Any] | None) -> list[tuple[str, str]]:
    statistics = [name for name in weights if name.endswith(("running_mean", "running_var"))]
    parameters = sum(array.size for name, array in weights.items() if name not in set(statistics))
    types = sorted({array.dtype.name for array in weights.values()})
    backbone = _BACKBONES[contents.model] if contents.model else "none that pfseg has"
    rows = [
        ("arrays", f"{len(weights)}, of them {len(statistics)} running statistics of BatchNorm"),
        ("parameters", f"{parameters:,} ({parameters / 1e6:.2f} M), {', '.join(types)}"),
        ("backbone", backbone),
    ]
    if contents.num_classes is None:
        return [*rows, ("head", "none of PFNet: a backbone alone goes to model.pretrained")]
    rows += [
        ("model", f"PFNet{f', model={contents.model}' if contents.model else ''}"),
        ("classes", str(contents.num_classes)),
        ("channels", f"fpn_dim={contents.fpn_dim}, match_dim={contents.match_dim}"),
    ]
    if meta is None:
        unknown = "variant (--variant), data set (--dataset); edge points and pools, for which the model's are taken"
        return [*rows, ("not in the file", unknown)]
    model, dataset = (meta["config"].get(group, {}) for group in ("model", "dataset"))
    sizes = ("variant", "num_edge_points", "edge_pool", "salient_pool")
    rows.append(("settings", ", ".join(f"{key}={model[key]}" for key in sizes if key in model)))
    return [*rows, ("data set", str(dataset.get("name"))), ("step", str(meta.get("progress", {}).get("step")))]


def _console() -> Console:
    plain = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PLAIN_WIDTH) if plain else Console()


if __name__ == "__main__":
    sys.exit(main())
