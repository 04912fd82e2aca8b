"""Networks and losses as conf/ describes them, but for what a test changes."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import OmegaConf

from pfseg.build import build_model, instantiate
from pfseg.config.compose import compose
from pfseg.losses import ImageWeightedCrossEntropy, PFNetLoss, RelaxedBoundaryLoss
from pfseg.models.pfnet import PFNet


def settings(group: str, choice: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a file of conf/model or conf/loss; `changes` by dotted key."""
    overrides = [f"{group}.{key}={json.dumps(value)}" for key, value in changes.items()]
    return OmegaConf.to_container(compose("train", [f"{group}={choice}", *overrides]), resolve=True)[group]


def build_loss(choice: str = "pfnet", **changes: Any) -> PFNetLoss:
    """The loss of conf/loss/<choice>.yaml."""
    return instantiate(settings("loss", choice, changes))


def build_image_weighted(**changes: Any) -> ImageWeightedCrossEntropy:
    """The segmentation loss of conf/loss/image_weighted.yaml."""
    return build_loss("image_weighted", **{f"segmentation.{key}": value for key, value in changes.items()}).segmentation


def build_relaxed(**changes: Any) -> RelaxedBoundaryLoss:
    """The segmentation loss of conf/loss/relaxed.yaml."""
    return build_loss("relaxed", **{f"segmentation.{key}": value for key, value in changes.items()}).segmentation


def build_pfnet(choice: str = "pfnet_r18", num_classes: int = 3, **changes: Any) -> PFNet:
    """The network of conf/model/<choice>.yaml, with random weights."""
    return build_model(settings("model", choice, changes), num_classes)
