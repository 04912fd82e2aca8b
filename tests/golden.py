"""Weights and inputs of the stored outputs of the published networks; both are regenerated, not stored."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data" / "golden"

CENTRED = (  # classifiers whose weights have no mean over their inputs
    "head.conv_last.1.weight",
    "head.conv_seg.weight",
    "head.cls.4.weight",
    "head.cls_pred_conv.weight",
    "head.coarse.predictor.weight",
    "head.point_head.predictor.weight",
)
FACTORS = (
    (r".*\.bn3\.weight", 0.25),
    (r"head\.fpn_in\..*\.1\.(weight|bias)", 0.1),
    (r"head\.sr\.scene_encoder\..*\.2\.weight", 0.1),
    (r"head\.cca\.gamma", 6.0),
    (r".*\.flow_make\.weight", 4.0),
    (r".*\.spatial_gating_unit\.conv3\.weight", 0.15),
)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def shapes(name: str) -> dict[str, list[int]]:
    return json.loads((FOLDER / f"{name}.shapes.json").read_text())


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_mean"):
        value = rng.standard_normal(shape) * 0.1
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif "layer_scale_" in key or key.endswith("gamma"):
        value = rng.uniform(0.1, 0.3, shape)
    elif len(shape) == 1 and key.endswith("weight"):
        value = rng.uniform(0.5, 1.0, shape)
    elif len(shape) == 1:
        value = rng.standard_normal(shape) * 0.1
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    for pattern, factor in FACTORS:
        if re.fullmatch(pattern, key):
            value = value * factor
    if key in CENTRED:
        value = value - value.mean(axis=1, keepdims=True)
    return value.astype(np.float32)


def fill(module):
    """Give a module the golden weights, and return it in evaluation mode."""
    for key, var in module.state_dict().items():
        var.assign(weight(key, tuple(var.shape)))
    module.eval()
    return module


def thinned(x) -> np.ndarray:
    """What is stored of maps (1, C, h, w)."""
    step = max(1, x.shape[2] // 8)
    return x.numpy()[0, :: max(1, x.shape[1] // 16), ::step, ::step]


def difference(got, expected: np.ndarray) -> float:
    """Largest deviation relative to the largest expected value."""
    got = np.asarray(got)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())
