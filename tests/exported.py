"""A small PFNet without training, as a checkpoint and as an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import numpy as np

from pfseg.build import build_model
from pfseg.commands.export import run
from pfseg.config.check import check, checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.runtime import jt
from pfseg.weights.checkpoint import save_checkpoint
from pfseg.weights.transfer import export_weights

CLASSES = [
    {"name": "roof", "color": [60, 16, 152]},
    {"name": "road", "color": [110, 193, 228]},
    {"name": "tree", "color": [0, 160, 0], "id": 7},
]
SMALL = ["model=pfnet_r18", "model.fpn_dim=32", "model.match_dim=16", "model.num_edge_points=20"]


def make_checkpoint(path: Path, *overrides: str) -> Path:
    """Write a checkpoint for windows of 96 px whose three classes all occur."""
    rows = json.dumps(CLASSES).replace('"', "")
    given = ["dataset=folder", "dataset.root=.", f"dataset.classes={rows}", "dataset.crop_size=96", *SMALL]
    settings = checked(compose("train", [*given, "gpus=0", "ranks=1", "logger=none", *overrides]), Train)
    network = golden.fill(build_model(settings.model, len(CLASSES), len(settings.dataset.mean or (0, 1, 2))))
    weights = export_weights(network)
    image = np.random.default_rng(0).standard_normal((2, network.in_channels, 96, 96)).astype(np.float32)
    with jt.no_grad():
        logits = network.predict(jt.array(image)).numpy()
    weights["head.conv_last.1.bias"] -= np.median(logits, axis=(0, 2, 3))
    record = {"bands": [2, 1, 0], "stretch": [2.0, 98.0], "nodata": "black", "seen": None}
    meta: dict[str, Any] = {"config": settings.dump(), "progress": {"step": 7}, "epoch": 0, "input": record}
    meta["scores"] = {"mIoU": 41.5, "IoU/roof": 40.25}
    save_checkpoint(path, weights, meta)
    return path


def export(checkpoint: Path, out: Path, *overrides: str) -> Path:
    """`pfseg export` in this process."""
    run(check(compose("export", [f"checkpoint={checkpoint}", f"out={out}", *overrides])))
    return out
