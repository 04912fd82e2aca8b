"""Checkpoints: one safetensors file that is whole at any moment, and a JSON beside it to read.

`<name>.safetensors` holds the weights that validation saw under their published names, further sections under
`train/`, `optimizer/` (what training goes on with), and in its header the JSON text of everything else, so that one
rename replaces all of it at once. `<name>.json` repeats that text for people.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pfseg.errors import CheckpointError, WriteError
from pfseg.files import PART, write_atomic
from pfseg.tracking.records import plain

_HEADER = "pfseg"
# Settings that earlier versions didn't write, with the value that means what those did.
_LATER = {"dataset": {"eval_contrast": None}}
SECTIONS = ("train/", "optimizer/")  # prefixes of entries that are not the network's evaluated weights


def save_checkpoint(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write `path` (.safetensors) and its JSON; a kill or a full disk leaves the previous ones whole.

    Args:
        path: file to write.
        arrays: weights and further sections.
        meta: what JSON can hold: config, step, metrics, versions, ...

    Raises:
        WriteError: the disk is full or not writable.
    """
    text = json.dumps(plain(meta), indent=1, allow_nan=False)
    data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata={_HEADER: text})
    try:
        for killed in path.parent.glob(f".{path.name}.*{PART}"):  # a kill while saving left it
            killed.unlink()
        write_atomic(path, data)
        write_atomic(path.with_suffix(".json"), text)
    except WriteError as error:
        raise WriteError(f"checkpoint not saved, the previous one is whole: {error}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays and the metadata of a checkpoint; raises CheckpointError."""
    meta, keys = _open(path)
    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in keys}, meta


def load_meta(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, with its `config`; raises CheckpointError."""
    meta = _open(path)[0]
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise CheckpointError(f"{path} doesn't say how it was trained (no config in it); use another checkpoint")
    return meta


def read_meta(path: Path) -> dict[str, Any] | None:
    """The metadata of a checkpoint, with its `config`; None for any other file."""
    try:
        return load_meta(path)
    except CheckpointError:
        return None


def _rename(config: Any) -> None:
    """Give settings of earlier versions their present names."""
    data = config.get("dataset") if isinstance(config, dict) else None
    if isinstance(data, dict) and "resolution" in data:
        data["scale"] = data.pop("resolution")


def _open(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        with safe_open(path, framework="np") as file:
            header, keys = file.metadata() or {}, list(file.keys())
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); use another checkpoint") from error
    if _HEADER not in header:
        raise CheckpointError(
            f"{path} holds weights but no pfseg metadata: expected a file written by train.py; "
            "make a checkpoint of plain weights by pfseg convert, or start from them by model.init"
        )
    try:
        meta = json.loads(header[_HEADER])
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata ({error}); use another checkpoint") from error
    config = meta.get("config") if isinstance(meta, dict) else None
    _rename(config)
    for group, later in _LATER.items():
        if isinstance(config, dict) and isinstance(stored := config.get(group), dict):
            config[group] = later | stored
    return meta, keys
