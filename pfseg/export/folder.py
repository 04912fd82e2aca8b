"""A model as a folder to share: weights, ONNX file, settings, classes, scores and a card with a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from pfseg.data.base import ClassInfo, class_ids
from pfseg.data.inputs import INDEX
from pfseg.export.card import model_card
from pfseg.files import plain, write_atomic
from pfseg.reporting.table import csv_text
from pfseg.weights.checkpoint import SECTIONS, Meta, save_checkpoint

WEIGHTS, ONNX, PICTURE = "model.safetensors", "model.onnx", "picture.png"


def shareable(meta: Meta) -> Meta:
    """Metadata without the paths of this machine."""
    config = dict(meta["config"])
    for group, keys in (("dataset", ("root",)), ("model", ("pretrained", "init"))):
        config[group] = config[group] | {key: None for key in keys if key in config[group]}
    shared = meta.copy()
    shared["config"] = config | {"resume": None}
    return shared


def write_folder(
    out: Path, checkpoint: Path, meta: Meta, classes: Sequence[ClassInfo], onnx: bytes, index: str | None
) -> None:
    """Write a model folder; `onnx` is the exported file, `index` the hash of the training data's index.

    Raises:
        WriteError: a file can't be written.
    """
    with safe_open(checkpoint, framework="np") as file:
        weights = {key: file.get_tensor(key) for key in file.keys() if not key.startswith(SECTIONS)}
    found = {"scores": meta.get("scores", {}), "step": meta.get("progress", {}).get("step"), "index": index}
    rows = [[label, info.name, info.hex_color] for label, info in zip(class_ids(classes), classes, strict=True)]
    picture = find_picture(checkpoint)
    save_checkpoint(out / WEIGHTS, weights, meta)
    write_atomic(out / ONNX, onnx)
    write_atomic(out / "config.yaml", yaml.safe_dump(meta["config"], sort_keys=False, allow_unicode=True))
    write_atomic(out / "classes.csv", csv_text(["id", "name", "color"], rows))
    write_atomic(out / "metrics.json", json.dumps(plain(found), indent=1, allow_nan=False))
    if picture is not None:
        write_atomic(out / PICTURE, picture)
    write_atomic(out / "README.md", model_card(meta, classes, found, PICTURE if picture else None))


def index_hash(meta: Mapping[str, Any]) -> str | None:
    """SHA-256 of the index of the patches that were trained on; None for other data, or where they aren't here."""
    root = meta["config"]["dataset"].get("root")
    with suppress(OSError):
        return hashlib.sha256((Path(str(root)) / INDEX).read_bytes()).hexdigest() if root else None
    return None


def find_picture(checkpoint: Path) -> bytes | None:
    """The last samples that the run of a checkpoint has drawn."""
    drawn = sorted((checkpoint.parent.parent / "samples").glob("step_*[0-9].png"), key=lambda path: len(path.name))
    whole = [path for path in drawn if path.stem.count("_") == 1]
    return max(whole).read_bytes() if whole else None
