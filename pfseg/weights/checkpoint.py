"""Checkpoints: a safetensors file that is complete at any moment, and beside it a JSON file for people.

`<name>.safetensors` holds the weights that validation saw, under their published names; further sections `train/` and
`optimizer/`, to continue from; and in its header everything else as JSON, which `<name>.json` repeats.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from typing_extensions import TypedDict

from pfseg.errors import CheckpointError, WriteError
from pfseg.files import PART, parse_json, plain, write_atomic
from pfseg.weights.onnx_file import SUFFIX, read_onnx

_HEADER = "pfseg"
SECTIONS = ("train/", "optimizer/")  # prefixes of entries that are not the network's evaluated weights


class Progress(TypedDict, total=False):
    """Where a run stands; the fields of `pfseg.engine.trainer.TrainingState`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    step: int
    validated: int
    best_miou: float
    best_step: int
    validations_since_best: int


class Meta(TypedDict, total=False):
    """The metadata of a checkpoint; the last ones only tell people something."""

    config: dict[str, Any]
    progress: Progress
    epoch: int
    scores: dict[str, float | None]
    input: dict[str, Any] | None
    seed: int
    pfseg: str
    jittor: str
    source: dict[str, str]


_META = TypeAdapter(Meta)


def save_checkpoint(path: Path, arrays: dict[str, np.ndarray], meta: Meta) -> None:
    """Write `path` (.safetensors) and its JSON file, or leave the previous ones intact and raise WriteError."""
    text = json.dumps(plain(meta), indent=1, allow_nan=False)
    data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata={_HEADER: text})
    try:
        earlier = ", the previous one is intact" if path.exists() else ""
        for leftover in path.parent.glob(f".{path.name}.*{PART}"):  # of a run that was killed while saving
            with suppress(OSError):
                leftover.unlink()
        write_atomic(path, data)
        write_atomic(path.with_suffix(".json"), text)
    except WriteError as error:
        raise WriteError(f"checkpoint not saved{earlier}: {error}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Meta]:
    """All arrays and the metadata of a checkpoint; raises CheckpointError."""
    meta, keys = _read_header(path)
    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in keys}, meta


def load_meta(path: Path) -> Meta:
    """The metadata of a checkpoint, or of one that was exported to ONNX, with its `config`; raises CheckpointError."""
    meta = _parse(path, read_onnx(path).header) if path.suffix == SUFFIX else _read_header(path)[0]
    if "config" not in meta:
        raise CheckpointError(f"{path} doesn't say how it was trained (no config in it); use another checkpoint")
    return meta


def read_meta(path: Path) -> Meta | None:
    """The metadata of a checkpoint, with its `config`; None for any other file."""
    with suppress(CheckpointError):
        return load_meta(path)
    return None


def _read_header(path: Path) -> tuple[Meta, list[str]]:
    try:
        with safe_open(path, framework="np") as file:
            header, keys = file.metadata() or {}, list(file.keys())
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); use another checkpoint") from error
    if _HEADER not in header:
        raise CheckpointError(
            f"{path} holds weights but no pfseg metadata: expected a file written by train.py; "
            "make a checkpoint of plain weights by pfseg convert, or start from them by model.init"
        )
    return _parse(path, header[_HEADER]), keys


def _parse(path: Path, text: str) -> Meta:
    try:
        meta: Meta = parse_json(text)
        _META.validate_python(meta, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"{'.'.join(map(str, fault['loc']))}: " if fault["loc"] else ""
        raise CheckpointError(f"{path} has damaged metadata ({where}{fault['msg']}); use another checkpoint") from error
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}); use another checkpoint") from error
    return meta
