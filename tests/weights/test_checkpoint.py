from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
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
        rf"not saved, the previous one is intact: {path} can't be written \(No space left on device\); free some space"
    )
    with pytest.raises(WriteError, match=said):
        save_checkpoint(path, ARRAYS, META | {"step": 4})
    assert load_checkpoint(path)[1]["step"] == 3


def test_the_first_one_that_cannot_be_written(path: Path):
    path.parent.mkdir()
    (path.parent / f".last.safetensors.{os.getpid()}.part").mkdir()
    with pytest.raises(WriteError, match=r"^checkpoint not saved: "):
        save_checkpoint(path, ARRAYS, META)


@pytest.mark.parametrize(
    ("meta", "where"),
    [
        ({"config": 3}, "config: Input should be a valid dictionary"),
        ({"progress": {"step": "3"}}, "progress.step: Input should be a valid integer"),
        ({"progress": {"steps": 3}}, "progress.steps: Extra inputs"),
        ({"scores": []}, "scores: Input should be a valid dictionary"),
        ({"epoch": None}, "epoch: Input should be a valid integer"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_metadata_of_wrong_types(path: Path, meta: object, where: str):
    path.parent.mkdir()
    save_file(ARRAYS, path, metadata={"pfseg": json.dumps(meta)})
    with pytest.raises(CheckpointError, match=rf"last.safetensors has damaged metadata \({where}.*\); use another"):
        load_checkpoint(path)


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
    with pytest.raises(
        CheckpointError, match=r"last\.safetensors is not a complete safetensors file \(.+\); use another"
    ):
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


def test_a_checkpoint_without_its_settings(path: Path):
    save_checkpoint(path, ARRAYS, {"step": 3})
    with pytest.raises(CheckpointError, match=r"last.safetensors doesn't say how it was trained \(no config in it\)"):
        load_meta(path)
    assert read_meta(path) is None
