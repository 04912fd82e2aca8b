"""Weights of the stored outputs of the networks beside PFNet; regenerated, not stored."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np

from pfseg.runtime import jt

CENTRED = (  # classifiers whose weights have no mean over their inputs, so that no choice hangs on a tie
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
        value = 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    for pattern, factor in FACTORS:
        if re.fullmatch(pattern, key):
            value = value * factor
    if key in CENTRED:
        value = value - value.mean(axis=1, keepdims=True)
    return value.astype(np.float32)


def fill(module: Any) -> Any:
    """Give a module these weights, and return it in evaluation mode."""
    for key, var in module.state_dict().items():
        var.assign(weight(key, tuple(var.shape)))
    module.eval()
    return module


def thinned(maps: jt.Var) -> np.ndarray:
    """What is stored of maps (1, C, h, w)."""
    _, channels, height, _ = maps.shape
    step = max(1, height // 8)
    stored: np.ndarray = maps.numpy()[0, :: max(1, channels // 16), ::step, ::step]
    return stored
