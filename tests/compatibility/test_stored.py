"""What revision 7252cb6 wrote is still read: a checkpoint, a run folder and prepared patches; see data/make.sh."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import CPU, ENVIRONMENT, ROOT, rows

from pfseg.weights.checkpoint import load_checkpoint

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text())
ONE_CPU = ["gpus=0", "ranks=1"]


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """A user's folder: `run`, `patches`, and a backbone of their own in conf/ and small.py."""
    return Path(shutil.copytree(DATA, tmp_path / "town"))


def pfseg(folder: Path, *arguments: str) -> str:
    """Run a command in a folder; returns what it printed."""
    command, *rest = arguments
    start = [str(ROOT / command)] if command.endswith(".py") else ["-m", "pfseg", command]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *start, *rest], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_checkpoint_is_loaded():
    arrays, meta = load_checkpoint(DATA / "run" / "checkpoints" / "last.safetensors")
    assert meta["progress"]["step"] == 3
    assert {"layer0.weight", "head.conv_last.1.weight"} <= {key.removeprefix("model/") for key in arrays}


@pytest.mark.slow
def test_the_checkpoint_scores_as_before(town: Path):
    pfseg(town, "evaluate.py", "checkpoint=run", "trust=true", "dataset.root=patches", "score=both", *ONE_CPU,
          "hydra.run.dir=scores")  # fmt: skip
    results = json.loads((town / "scores" / "results.json").read_text())
    for name, value in EXPECTED["evaluate"].items():
        assert results[name] == pytest.approx(value, abs=0.05), name
    assert results["scenes"]["images"] == 1


@pytest.mark.slow
def test_the_run_is_resumed_with_the_losses_of_then(town: Path):
    pfseg(town, "train.py", "resume=run", "trainer.max_epochs=2")
    logged = rows(town / "run", "train")
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    assert [row["train/loss"] for row in logged[3:]] == pytest.approx(EXPECTED["resumed"]["train/loss"], rel=1e-3)
    assert rows(town / "run", "val")[-1]["val/OA"] == pytest.approx(EXPECTED["resumed"]["val/OA"], abs=0.05)


@pytest.mark.slow
def test_the_run_is_reported_and_its_checkpoint_shown_and_mapped(town: Path):
    assert "pfnet_r18" in pfseg(town, "report", "run")
    assert "model.fpn_dim=8 model.match_dim=4" in pfseg(town, "convert", "run/checkpoints/best.safetensors")
    pfseg(town, "predict", "checkpoint=run", "trust=true", "input=patches/val/images", "output=maps")
    assert len(list((town / "maps").glob("*.png"))) == 6


@pytest.mark.slow
def test_the_patches_are_verified_and_trained_on(town: Path):
    size = ["dataset.prepare.size=64", "dataset.prepare.stride=48"]
    pfseg(town, "prepare", "dataset=isaid", "out=patches", "verify=only", *size)
    data = ["dataset=isaid", "dataset.root=patches", "dataset.crop_size=64", "dataset.class_uniform=0.5"]
    network = ["model/backbone=small", "model.fpn_dim=8", "model.match_dim=4"]
    length = ["trainer.max_steps=2", "trainer.bn_batches=0", "trainer.num_samples=0"]
    start = ["model.init=run/checkpoints/best.safetensors", "hydra.run.dir=again"]
    pfseg(town, "train.py", *CPU, *data, *network, *length, *start)
    assert [row["step"] for row in rows(town / "again", "train")] == [1, 2]
    assert rows(town / "again", "start")[0]["images_train"] == 12
