"""A user's own logger: one YAML file and one class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.errors import ConfigError
from pfseg.tracking.loggers import RunContext, make_loggers
from pfseg.tracking.records import Row, Sink

MODULE = """
from pfseg.tracking.records import Sink

class ScoresLogger(Sink):
    def __init__(self, run, *, file):
        self.path, self.group = run.folder / file, run.group

    def on_val(self, row):
        with self.path.open("a") as file:
            file.write(f"{row['step']} {row['val/mIoU']}\\n")

class NoSink:
    def __init__(self, run):
        pass
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loggers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_loggers", raising=False)


def made(folder: Path, **logger: Any) -> list[Sink]:
    return list(make_loggers(RunContext(folder, {"logger": logger}, Sink(), group="sweep")))


def val(step: int, miou: float) -> Row:
    return {"event": "val", "step": step, "epoch": 0, "time": 1.0, "val/mIoU": miou}


def test_a_class_of_the_users_gets_the_run_and_its_own_settings(tmp_path: Path):
    (logger,) = made(tmp_path, scores={"_target_": "own_loggers.ScoresLogger", "file": "scores.txt"}, wandb=None)
    for row in (val(1, 40.0), {"event": "train", "step": 2, "epoch": 0, "time": 1.0}, val(3, 41.0)):
        logger.record(row)
    logger.finish()
    assert (tmp_path / "scores.txt").read_text() == "1 40.0\n3 41.0\n"
    assert logger.group == "sweep"  # type: ignore[attr-defined]


def test_a_logger_of_the_users_is_one_yaml_file_and_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "logger").mkdir()
    text = "# @package logger.scores\n_target_: own_loggers.ScoresLogger\nfile: scores.txt\n"
    (tmp_path / "logger" / "scores.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    settings = checked(compose("train", ["logger=[scores,tensorboard]", "gpus=0"], folder=tmp_path), Train)
    first, second = make_loggers(RunContext(tmp_path, settings.dump(), Sink()))
    assert {type(first).__name__, type(second).__name__} == {"ScoresLogger", "TensorBoardLogger"}


def test_no_logger_is_fine(tmp_path: Path):
    assert made(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"^logger\.mine has no _target_: name its class as package\.module\.Class$"),
        ({"_target_": "own_loggers.Missing"}, r"^logger\.mine\._target_=own_loggers\.Missing can't be imported \("),
        ({"_target_": "no.such.Logger"}, r"^logger\.mine\._target_=no\.such\.Logger can't be imported \(No module"),
        ({"_target_": "own_loggers.ScoresLogger", "fiel": 1}, r"^logger\.mine: .* can't be built: .*'fiel'"),
        ({"_target_": "own_loggers.NoSink"}, r"must derive from pfseg\.tracking\.records\.Sink$"),
    ],
)
def test_a_logger_that_cannot_be_made_is_an_error(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, mine=settings)
