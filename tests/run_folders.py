"""Folders as runs leave them, written by code: no training needed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from pfseg.metrics.confusion import scores
from pfseg.tracking.records import RecordWriter

CLASSES = [("land", (132, 41, 246)), ("water", (226, 169, 41)), ("Straße", (110, 193, 228)), ("tree", (60, 16, 152))]
NAMES = [name for name, _ in CLASSES]


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    edge_weight: float = 1.0,
    model: str = "pfnet_r18",
    quality: float = 0.5,
    steps: int = 60,
    val_every: int = 20,
    overrides: tuple[str, ...] = (),
    status: str | None = "done",
    panels: bool = True,
    host: str | None = None,
) -> Path:
    """Write a training that reached `steps`; `quality` of 0..1 sets its scores, a status of None leaves no end."""
    config = {
        "job": "train", "name": f"{model}_dubai", "seed": seed, "batch_size": 4, "resume": None,
        "trainer": {"max_steps": steps, "val_every": 1},
        "dataset": {
            "_target_": "pfseg.data.folder.FolderDataset", "name": "dubai", "root": "/data/dubai",
            "classes": [{"name": name, "color": list(color)} for name, color in CLASSES],
        },
        "model": {"name": model, "match_dim": 64 if model == "pfnet_r18" else 128, "backbone": {"depth": 18}},
        "loss": {"edge_weight": edge_weight}, "optimizer": {"name": "adamw", "lr": 0.001},
        "logger": {}, "launch": {"name": "mpi"},
    }  # fmt: skip
    hydra = {"hydra": {"runtime": {"choices": {"model": model, "dataset": "dubai", "experiment": None}}}}
    _dump(folder / "resolved.yaml", config)
    _dump(folder / ".hydra" / "hydra.yaml", hydra)
    _dump(folder / ".hydra" / "overrides.yaml", [f"seed={seed}", f"loss.edge_weight={edge_weight}", *overrides])
    if host:
        (folder / "environment.json").write_text(json.dumps({"hostname": host}))
    writer = RecordWriter(folder / "metrics.jsonl")
    cost = {"parameters": 12_870_000 if model == "pfnet_r18" else 31_320_000, "macs": 30_400_000_000}
    writer.write("start", step=0, epoch=0, steps=steps, classes=NAMES, device="cpu", **cost)
    rng = np.random.default_rng([seed, round(edge_weight * 100), len(model)])
    for step in range(1, steps + 1):
        seg = 2.5 * math.exp(-4 * quality * step / steps) * rng.uniform(0.7, 1.4) + 0.05
        terms = {"train/seg": seg, "train/edge_layer1": seg / 5, "train/lr": 1e-3 * (1 - step / (steps + 1)) ** 0.9}
        epoch = (step - 1) // val_every
        writer.write("train", step=step, epoch=epoch, **{"train/loss": 1.2 * seg, **terms, "train/images_per_s": 5.0})
        if step % val_every == 0:
            _validate(writer, folder, step, epoch, quality * step / steps * rng.uniform(0.9, 1.1), rng, panels)
    if status:
        writer.write("end", step=steps, epoch=(steps - 1) // val_every, status=status)
        (folder / "result.json").write_text(json.dumps({"status": status, "step": steps}))
    return folder


def fail(folder: Path, message: str, *, user: bool = True) -> None:
    """Add what a failing rank leaves."""
    (folder / "errors").mkdir()
    row = {"rank": 0, "time": 1.0, "type": "JobError", "message": message, "user": user, "exit_code": 1}
    (folder / "errors" / "rank0.json").write_text(json.dumps(row))


def _validate(
    writer: RecordWriter, folder: Path, step: int, epoch: int, quality: float, rng: np.random.Generator, panels: bool
) -> None:
    confusion = rng.integers(0, 900, (len(NAMES), len(NAMES))) + np.diag([round(9000 * quality)] * len(NAMES))
    confusion[-1] = confusion[:, -1] = 0  # a class that never occurs has no score
    path = f"samples/step_{step:06d}.png"
    if panels:
        (folder / "samples").mkdir(exist_ok=True)
        picture = np.kron(rng.integers(0, 256, (6, 20, 3)), np.ones((60, 60, 1))).astype(np.uint8)
        assert cv2.imwrite(str(folder / path), picture)
    values = {f"val/{key}": value for key, value in scores(confusion, NAMES).items()}
    writer.write("val", step=step, epoch=epoch, best=False, panels=path if panels else None, **values)
    writer.write("confusion", step=step, epoch=epoch, confusion=confusion.tolist())


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")
