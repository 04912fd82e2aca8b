"""Training on any number of bands, and prediction from the checkpoint alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.fakes import tif, write
from runs import CPU, ENVIRONMENT, ROOT

TABLE = "dataset.classes=[{name: low, color: '000000'}, {name: high, color: 'FFFFFF'}]"
SMALL = ["model=pfnet_r18", "model.fpn_dim=32", "model.match_dim=16", "dataset.crop_size=64", "batch_size=2"]


def pfseg(folder: Path, *arguments: str) -> str:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "PFSEG_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "pfseg", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("count", "source"), [(4, "patches"), (8, "scenes")])
def test_training_and_prediction(tmp_path: Path, count: int, source: str):
    """Only the last band tells the classes apart; mean, deviation and stretch are measured."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(3):
            mask = np.zeros((96, 96), np.uint8)
            mask[24:72, 24:72] = 1
            bands = rng.integers(200, 900, (count, 96, 96)).astype(np.uint16)
            bands[-1, mask == 1] += 2000
            tif(tmp_path / split / "images" / f"{number}.tif", bands, photometric="minisblack")
            write(tmp_path / split / "masks" / f"{number}.png", mask)
    order = ",".join(map(str, range(count)))
    data = [
        "dataset=folder", f"dataset.root={tmp_path}", TABLE, f"dataset.bands=[{order}]",
        f"dataset.display_bands=[{count - 1},1,0]", "dataset.mean=null", "dataset.std=null", f"dataset.source={source}",
        "dataset.stretch={percentiles:[1,99]}", "dataset.prepare.size=64",
    ]  # fmt: skip
    steps = ["trainer.max_steps=20", "trainer.val_every=20", "optimizer.lr=0.02", "schedule=constant", "logger=none"]
    out = pfseg(tmp_path, "train", *data, *SMALL, *CPU, *steps, "trainer.workers=0", "hydra.run.dir=run")
    assert "low" in out and "training masks" in out
    record = json.loads((tmp_path / "run" / "input.json").read_text())
    assert record["bands"] == [*range(count)] and len(record["mean"]) == len(record["stretch"]["range"]) == count
    panels = cv2.imread(str(next((tmp_path / "run" / "samples").glob("step_*.png"))))
    assert panels is not None
    given = ["input=val/images", "output=maps", "outputs=[classes,overlay]", "window=96", "overlap=0", "format=png"]
    assert "3 images predicted" in pfseg(tmp_path, "predict", "checkpoint=run", *given)
    pfseg(tmp_path, "evaluate", "checkpoint=run", "hydra.run.dir=scores", "gpus=0", "ranks=1", "logger=none")
    result = json.loads((tmp_path / "scores" / "results.json").read_text())
    agree = [
        cv2.imread(str(tmp_path / "maps" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        == cv2.imread(str(tmp_path / "val" / "masks" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        for number in range(3)
    ]
    if source == "patches":  # whole images, as the maps
        assert 100 * np.mean(agree) == pytest.approx(result["OA"], abs=0.5)
    assert cv2.imread(str(tmp_path / "maps" / "0_overlay.png")).shape == (96, 96, 3)
