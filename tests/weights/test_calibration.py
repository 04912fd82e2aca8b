"""The temperature beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfseg.errors import CheckpointError
from pfseg.weights.calibration import load_temperature, save_calibration


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"weights")
    return path


def test_kept_and_read(checkpoint: Path):
    assert load_temperature(checkpoint) is None
    path = save_calibration(checkpoint, {"temperature": 1.5, "split": "val"})
    assert path.name == "best.calibration.json" and json.loads(path.read_text())["split"] == "val"
    assert load_temperature(checkpoint) == 1.5


def test_not_of_weights_that_were_written_since(checkpoint: Path):
    save_calibration(checkpoint, {"temperature": 1.5})
    checkpoint.write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"calibration.json is of another best.safetensors, .* temperature=1"):
        load_temperature(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": "a"}', '{"sha256": "a", "temperature": -1}'])
def test_damaged(checkpoint: Path, text: str):
    (checkpoint.parent / "best.calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best.calibration.json is damaged \(.*\): remove it, or write it again"):
        load_temperature(checkpoint)
