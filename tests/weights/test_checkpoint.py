from __future__ import annotations

import errno
import json
import math
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pfseg.config.validate import check_fits
from safetensors.numpy import save_file

from pfseg.errors import CheckpointError, WriteError
from pfseg.weights.checkpoint import load_checkpoint, load_meta, read_meta, save_checkpoint

ARRAYS = {"layer0.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "optimizer/values/x": np.ones(2, np.float32)}
META = {"step": 3, "config": {"name": "Straße"}, "scores": {"mIoU": 12.5, "IoU/car": math.nan}}
CONFIG = {
    "model": {
        "name": "pfnet_r18",
        "variant": "pytorch",
        "num_classes": 6,
        "dropout": 0.1,
        "backbone": {"_target_": "pfseg.models.resnet.ResNet", "depth": 18},
    },
    "optimizer": {"name": "sgd", "lr": 0.01},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.safetensors"


def test_what_is_saved_is_loaded(path: Path):
    save_checkpoint(path, ARRAYS | {"transposed": ARRAYS["layer0.0.weight"].T}, META)
    arrays, meta = load_checkpoint(path)
    assert meta == META | {"scores": {"mIoU": 12.5, "IoU/car": None}}
    assert arrays.keys() == {*ARRAYS, "transposed"}
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
    np.testing.assert_array_equal(arrays["transposed"], ARRAYS["layer0.0.weight"].T)
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == meta
    assert {file.name for file in path.parent.iterdir()} == {"last.safetensors", "last.json"}


def test_a_full_disk_leaves_the_previous_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(path, ARRAYS, META)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = (
        rf"not saved, the previous one is whole: {path} can't be written \(No space left on device\); free some space"
    )
    with pytest.raises(WriteError, match=said):
        save_checkpoint(path, ARRAYS, META | {"step": 4})
    assert load_checkpoint(path)[1]["step"] == 3


def test_what_a_kill_left_is_removed(path: Path):
    save_checkpoint(path, ARRAYS, META)
    (path.parent / ".last.safetensors.123.part").write_bytes(b"half")
    save_checkpoint(path, ARRAYS, META)
    assert {file.name for file in path.parent.iterdir()} == {"last.safetensors", "last.json"}


def test_missing(path: Path):
    with pytest.raises(CheckpointError, match=f"checkpoint {path} does not exist"):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated(path: Path, keep: int):
    save_checkpoint(path, ARRAYS, META)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is no whole safetensors file \(.+\); use another"):
        load_checkpoint(path)


def test_plain_weights_are_no_checkpoint(tmp_path: Path):
    save_file(ARRAYS, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no pfseg metadata: .* make a checkpoint of plain weights by"):
        load_checkpoint(tmp_path / "weights.safetensors")


def test_metadata_alone(path: Path, tmp_path: Path):
    save_checkpoint(path, ARRAYS, META)
    assert read_meta(path)["config"] == META["config"]
    damaged = tmp_path / "damaged.safetensors"
    save_file(ARRAYS, damaged, metadata={"pfseg": "{"})
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors has damaged metadata \(.+\); use another"):
        load_checkpoint(damaged)
    for text in ("{", "[]", "{}", '{"config": 3}'):
        save_file(ARRAYS, damaged, metadata={"pfseg": text})
        assert read_meta(damaged) is None
    assert read_meta(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.variant", "jittor", "was trained with model.variant=pytorch, this run has jittor; resume without"),
        ("model.num_classes", 5, "was trained with model.num_classes=6, this run has 5;"),
        ("model.backbone.depth", 50, "was trained with model.backbone.depth=18, this run has 50;"),
        ("optimizer.name", "adamw", "was trained with optimizer.name=sgd, this run has adamw;"),
    ],
)
def test_another_network_or_optimizer_is_refused(key: str, value: object, said: str):
    with pytest.raises(WriteError, match=said):
        check_fits(Path("last.safetensors"), CONFIG, changed(key, value))


@pytest.mark.parametrize(("key", "value"), [("model.dropout", 0.0), ("model.name", "mine"), ("optimizer.lr", 0.1)])
def test_other_changes_are_taken(key: str, value: object):
    check_fits(Path("last.safetensors"), CONFIG, changed(key, value))


def changed(key: str, value: object) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    *groups, name = key.split(".")
    node: Any = config
    for group in groups:
        node = node[group]
    node[name] = value
    return config


def test_a_checkpoint_without_its_settings(path: Path):
    save_checkpoint(path, ARRAYS, {"step": 3})
    with pytest.raises(CheckpointError, match=r"last.safetensors doesn't say how it was trained \(no config in it\)"):
        load_meta(path)
    assert read_meta(path) is None


def test_a_checkpoint_of_an_earlier_version(path: Path):
    """It lacks settings that came later, and is taken as what it was."""
    save_checkpoint(path, ARRAYS, META | {"config": {"dataset": {"scale": 0.5}}})
    assert load_meta(path)["config"] == {"dataset": {"scale": 0.5, "eval_contrast": None}}
    save_checkpoint(path, ARRAYS, META | {"config": {"dataset": {"eval_contrast": 75.0}}})
    assert load_meta(path)["config"]["dataset"]["eval_contrast"] == 75.0
