"""TensorBoard files, read back record by record."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from logged import tensorboard_events, tensorboard_values

from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.errors import ConfigError
from pfseg.tracking.loggers import RunContext
from pfseg.tracking.records import Sink
from pfseg.tracking.tensorboard import TensorBoardLogger

START = {"event": "start", "step": 0, "epoch": 0, "time": 1.0, "classes": ["road", "roof"]}
TRAIN = {"event": "train", "step": 1, "epoch": 0, "time": 5.0, "train/loss": 0.5, "train/lr": None, "train/seg": 0.25}
VAL = {
    "event": "val", "step": 2, "epoch": 0, "time": 6.0, "best": True, "panels": "samples/step_000002.png",
    "val/mIoU": 40.0, "val/IoU/road": 40.0, "val/IoU/roof": None,
}  # fmt: skip


def test_scalars_pictures_and_texts_are_in_the_file(tmp_path: Path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    (tmp_path / "samples").mkdir()
    cv2.imwrite(str(tmp_path / "samples" / "step_000002.png"), picture)
    logger = TensorBoardLogger(RunContext(tmp_path, {"optimizer": {"lr": 0.1}}, Sink()))
    for row in (START, TRAIN, VAL, {"event": "confusion", "step": 2, "epoch": 0, "confusion": [[5, 1], [2, 7]]}):
        logger.record(row)
    logger.record({"event": "message", "step": 2, "epoch": 0, "text": "?"})
    logger.finish()
    logger.finish()
    found = tensorboard_values(tmp_path)
    scalars = {
        key: (value.simple_value, time) for key, (value, time) in found.items() if value.HasField("simple_value")
    }
    assert scalars == {
        ("train/loss", 1): (0.5, 5), ("train/seg", 1): (0.25, 5),
        ("val/mIoU", 2): (40, 6), ("val/IoU/road", 2): (40, 6),
    }  # fmt: skip
    shown = found["val/samples", 2][0].image.encoded_image_string
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), picture)
    texts = [value.tensor.string_val[0].decode() for value, _ in found.values() if value.HasField("tensor")]
    assert any("lr: 0.1" in text for text in texts)
    assert any("| roof | 2 | 7 |" in text for text in texts)


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path):
    for step in (0, 3):
        logger = TensorBoardLogger(RunContext(tmp_path, {}, Sink()))
        logger.record(START | {"step": step})
        logger.record(TRAIN | {"step": step + 1})
        logger.finish()
    found = [event for file in sorted((tmp_path / "tensorboard").iterdir()) for event in tensorboard_events(file)]
    assert [event.step for event in found if event.session_log.status == event.session_log.START] == [4]


def test_without_the_package_it_is_an_error(monkeypatch: pytest.MonkeyPatch):
    settings = compose("train", ["logger=[tensorboard,wandb]", "gpus=0"])
    assert checked(settings, Train).logger.chosen().keys() == {"tensorboard", "wandb"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    assert checked(compose("train", ["logger=wandb", "gpus=0"]), Train).logger.chosen().keys() == {"wandb"}
    text = r"^logger=tensorboard needs the package tensorboardX: run `pip install 'pfseg\[tensorboard\]'`$"
    with pytest.raises(ConfigError, match=text):
        checked(settings, Train)
