"""Weights and inputs of the stored outputs of the published networks; both are regenerated, not stored."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data" / "golden"


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
    if key.endswith(".bn3.weight"):
        value = value * 0.25
    if re.match(r"head\.fpn_in\.\d\.1\.(weight|bias)", key):
        value = value * 0.1
    if key.endswith(".spatial_gating_unit.conv3.weight"):
        value = value * 0.15
    if key in ("head.conv_last.1.weight", "head.conv_seg.weight"):
        value = value - value.mean(axis=1, keepdims=True)
    return value.astype(np.float32)


def fill(module):
    """Give a module the golden weights, and return it in evaluation mode."""
    for key, var in module.state_dict().items():
        var.assign(weight(key, tuple(var.shape)))
    module.eval()
    return module


def difference(got, expected: np.ndarray) -> float:
    """Largest deviation relative to the largest expected value."""
    got = np.asarray(got)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())
