"""A network of one convolution whose answer is known, and a checkpoint of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.runtime import jt
from pfseg.weights.checkpoint import save_checkpoint

CLASSES = [
    {"name": "red", "color": [255, 0, 0]},
    {"name": "green", "color": [0, 160, 0]},
    {"name": "blue", "color": [0, 0, 255]},
]


class Colour(jt.nn.Module):
    """The logit of a class is the mean of its colour over `side` pixels a side."""

    output_stride = 1

    def __init__(self, num_classes: int = 3, side: int = 1) -> None:
        super().__init__()
        self.conv = jt.nn.Conv(3, num_classes, side, padding=side // 2, bias=False)
        weight = np.zeros((num_classes, 3, side, side), np.float32)
        for label in range(num_classes):
            weight[label, label % 3] = 4 / side**2
        self.conv.weight = jt.array(weight)

    def predict(self, image: Any) -> Any:
        """Logits (N, K, H, W) of (N, 3, H, W)."""
        return self.conv(image)


def make_checkpoint(
    path: Path, *, side: int = 1, classes: list[dict[str, Any]] = CLASSES, record: Any = None, **dataset: Any
) -> Path:
    """Write a checkpoint as a training would leave it; `record` says what the network was given, if it has that."""
    training = ["gpus=0", "ranks=1", "dataset=folder", "dataset.root=.", "dataset.classes=[{name: a, color: FF0000}]"]
    config = check(compose("train", training)).dump()
    model = {"_target_": "tiny_network.Colour", "name": "colour", "num_classes": len(classes), "side": side}
    config["model"] = model | {"pretrained": None, "init": None}
    config["dataset"] |= {"name": "colours", "classes": classes, "mean": [0.5] * 3, "std": [0.25] * 3}
    config["dataset"] |= {"crop_size": [64, 64], **dataset}
    network = Colour(len(classes), side)
    meta = {"config": config, "progress": {"step": 1}, "epoch": 0} | ({"input": record} if record else {})
    save_checkpoint(path, {key: var.numpy() for key, var in network.state_dict().items()}, meta)
    return path
