"""Networks and losses as conf/ describes them, but for what a test changes."""

from __future__ import annotations

import json
from typing import Any

from pfseg.build import build_model
from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.targets import instantiate
from pfseg.losses import ImageWeightedCrossEntropy, PFNetLoss, RelaxedBoundaryLoss
from pfseg.models.pfnet import PFNet


def settings(group: str, choice: str, changes: dict[str, Any], *more: str) -> Train:
    """The settings of a training with a choice of model or loss; `changes` by dotted key within the group."""
    overrides = [f"{group}.{key}={json.dumps(value)}" for key, value in changes.items()]
    return checked(compose("train", [f"{group}={choice}", "gpus=0", "ranks=1", *overrides, *more]), Train)


def build_loss(choice: str = "pfnet", **changes: Any) -> PFNetLoss:
    """The loss of conf/loss/<choice>.yaml."""
    return instantiate(settings("loss", choice, changes).loss)


def build_image_weighted(**changes: Any) -> ImageWeightedCrossEntropy:
    """The segmentation loss of conf/loss/image_weighted.yaml."""
    return build_loss("image_weighted", **{f"segmentation.{key}": value for key, value in changes.items()}).segmentation


def build_relaxed(**changes: Any) -> RelaxedBoundaryLoss:
    """The segmentation loss of conf/loss/relaxed.yaml."""
    return build_loss("relaxed", **{f"segmentation.{key}": value for key, value in changes.items()}).segmentation


def build_pfnet(choice: str = "pfnet_r18", num_classes: int = 3, **changes: Any) -> PFNet:
    """The network of conf/model/<choice>.yaml, with random weights."""
    return build_model(settings("model", choice, changes).model, num_classes)
