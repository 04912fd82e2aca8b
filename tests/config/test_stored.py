"""Settings as earlier runs stored them: old names, later keys, code that isn't trusted, what a resumed run keeps."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.stored import check_fits, current, current_key, training_settings
from pfseg.errors import CheckpointError, ConfigError
from pfseg.weights.checkpoint import save_checkpoint

CONFIG = checked(compose("train", ["gpus=0", "optimizer=sgd"]), Train).dump()


def changed(key: str, value: object) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    *groups, name = key.split(".")
    node: Any = config
    for group in groups:
        node = node[group]
    node[name] = value
    return config


def stored(tmp_path: Path, config: dict[str, Any]) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, {"a": np.zeros(1, np.float32)}, {"config": config})
    return path


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "model.fpn_dim",
            128,
            r"last.safetensors was trained with model.fpn_dim=256, this run has 128; resume with",
        ),
        ("model.backbone.depth", 50, "was trained with model.backbone.depth=18, this run has 50;"),
        ("optimizer", compose("train", ["optimizer=adamw"]).optimizer, "optimizer.name=sgd, this run has adamw;"),
    ],
)
def test_another_network_or_optimizer_is_rejected(key: str, value: object, text: str):
    value = dict(value) if key == "optimizer" else value  # type: ignore[call-overload]
    if isinstance(value, dict):
        value["betas"] = list(value["betas"])
    ours = Train.model_validate(changed(key, value), strict=False)
    with pytest.raises(CheckpointError, match=text):
        check_fits(Path("last.safetensors"), Train.model_validate(CONFIG, strict=False), ours)


@pytest.mark.parametrize(("key", "value"), [("model.dropout", 0.0), ("model.name", "mine"), ("optimizer.lr", 0.1)])
def test_other_changes_are_accepted(key: str, value: object):
    theirs, ours = (Train.model_validate(config, strict=False) for config in (CONFIG, changed(key, value)))
    check_fits(Path("last.safetensors"), theirs, ours)


def test_names_of_earlier_versions():
    old = deepcopy(CONFIG)
    old["dataset"]["resolution"] = old["dataset"].pop("scale")
    old["launch"]["heartbeat"] = old["launch"].pop("timeout")
    old["loss"]["over_ranks"] = old["loss"].pop("global_reduction")
    old["loss"]["segmentation"] = {"_target_": "pfseg.losses.RelaxedBoundaryLoss", "until_epoch": 3, "over_ranks": True}
    for group, key in (("dataset", "eval_contrast"), ("trainer", "log_grad_norm")):
        del old[group][key]
    new = current(old)
    assert new["loss"].pop("segmentation") == {
        "_target_": "pfseg.losses.RelaxedBoundaryLoss",
        "until_epoch": 3,
        "global_reduction": True,
    }
    assert new | {"loss": new["loss"] | {"segmentation": None}} == CONFIG
    moved = current({"dataset": {"prepare": {"scenes": {"_target_": "pfseg.data.isprs.find_potsdam"}}}})
    assert moved["dataset"]["prepare"]["scenes"]["_target_"] == "pfseg.data.archives.isprs.find_potsdam"
    assert current_key("dataset.resolution=0.5") == "dataset.scale=0.5"
    assert current_key("+loss.segmentation.over_ranks=true") == "+loss.segmentation.global_reduction=true"
    assert current_key("model.resolution=1") == "model.resolution=1"


def test_settings_of_the_data_set_can_be_replaced(tmp_path: Path):
    path = stored(tmp_path, CONFIG)
    settings = training_settings(path, {"edge": {"thickness": 3}, "crop_size": 128})
    assert settings.dataset.edge.thickness == 3 and settings.dataset.edge.rule == "class"
    assert settings.dataset.crop_size == (128, 128)
    with pytest.raises(ConfigError, match=r"unknown key `dataset.split`: .*known keys of dataset \(SyntheticDataset\)"):
        training_settings(path, {"split": 3})
    with pytest.raises(ConfigError, match=r"^dataset.crop_size=big: expected"):
        training_settings(path, {"crop_size": "big"})


@pytest.mark.parametrize(
    ("key", "value"), [("dataset.crop_size", "big"), ("model", 3), ("trainer", []), ("dataset.classes", None)]
)
def test_damaged_settings_are_one_line(key: str, value: object, tmp_path: Path):
    path = stored(tmp_path, changed(key, value))
    with pytest.raises(CheckpointError, match=r"best.safetensors doesn't say how it was trained \(.*use another"):
        training_settings(path)


def test_code_of_others_needs_trust(tmp_path: Path):
    path = stored(tmp_path, changed("model.backbone._target_", "subprocess.run"))
    text = "best.safetensors names subprocess.run, which isn't part of pfseg: rejected, nothing was executed"
    with pytest.raises(CheckpointError, match=text):
        training_settings(path)
    backbone: Any = training_settings(path, trust=True).model
    assert backbone.backbone.target == "subprocess.run"
