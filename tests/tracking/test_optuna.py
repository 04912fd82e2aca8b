"""A job's place in an Optuna study, kept in a real storage."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from pfseg.errors import ConfigError
from pfseg.tracking.optuna import TrialReporter
from pfseg.tracking.records import Sink

STEPS = 40
NEVER, ALWAYS = optuna.pruners.NopPruner(), optuna.pruners.ThresholdPruner(lower=101)


def validation(epoch: int, miou: float) -> dict[str, Any]:
    return {"event": "val", "step": 10 * (epoch + 1), "epoch": epoch, "val/mIoU": miou}


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db", direction="maximize")


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Signals that a job would take as the wish to stop."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR1, before)


def stored(tmp_path: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials as the file has them; a study keeps its running ones in memory."""
    return optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db").trials


def ask(study: optuna.Study, lr: float) -> int:
    trial = study.ask()
    trial.suggest_float("optimizer.lr", lr, lr)
    trial.suggest_categorical("model.num_edge_points", [32])
    return trial.number


def report(tmp_path: Path, pruner: Any, lr: float = 0.25, folder: str = "run") -> TrialReporter:
    overrides = ["model.num_edge_points=32", f"optimizer.lr={lr}", "seed=0"]
    reporter = TrialReporter(tmp_path / folder, pruner, f"sqlite:///{tmp_path}/s.db", "s", overrides, Sink())
    reporter.record({"event": "start", "step": 0, "epoch": 0, "steps": STEPS})
    return reporter


def test_the_best_score_so_far_is_reported_to_the_jobs_own_trial(
    study: optuna.Study, tmp_path: Path, stopped: list[int]
):
    numbers = [ask(study, lr) for lr in (0.5, 0.25, 0.25)]
    for folder in ("newest", "older"):
        reporter = report(tmp_path, NEVER, folder=folder)
        for epoch, miou in enumerate((10.0, 30.0, 20.0)):
            reporter.record(validation(epoch, miou))
        reporter.record({"event": "train", "step": 31, "epoch": 3, "train/loss": 1.0})
        reporter.finish()
    other, older, newest = (stored(tmp_path)[number] for number in numbers)
    assert other.intermediate_values == {} and "folder" not in other.user_attrs
    assert newest.intermediate_values == older.intermediate_values == {1: 10, 2: 30, 3: 30}
    assert [trial.user_attrs["folder"] for trial in (newest, older)] == [
        str(tmp_path / "newest"),
        str(tmp_path / "older"),
    ]
    assert not stopped and not reporter.pruned


def test_a_bad_trial_is_stopped_once_but_not_at_its_last_step(study: optuna.Study, tmp_path: Path, stopped: list[int]):
    ask(study, 0.25)
    reporter = report(tmp_path, ALWAYS)
    reporter.record(validation(1, 5.0))
    reporter.record(validation(2, 6.0))
    assert reporter.pruned and stopped == [signal.SIGUSR1]
    trial = stored(tmp_path)[0]
    assert trial.user_attrs["pruned_at_epoch"] == 2 and trial.intermediate_values == {2: 5}
    ask(study, 0.5)
    last = report(tmp_path, ALWAYS, lr=0.5)
    last.record(validation(3, 5.0))  # step 40 of 40
    assert not last.pruned


def test_where_nobody_hears_the_signal_no_trial_is_stopped(study: optuna.Study, tmp_path: Path):
    ask(study, 0.25)
    reporter = report(tmp_path, ALWAYS)
    reporter.record(validation(0, 5.0))
    assert not reporter.pruned and stored(tmp_path)[0].intermediate_values == {1: 5}


def test_a_study_in_memory_and_a_trial_that_is_not_there_are_refused(study: optuna.Study, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^pruner is set, but the study is kept in memory.*hydra.sweeper.storage="):
        TrialReporter(tmp_path, NEVER, None, "s", [], Sink())
    ask(study, 0.5)
    with pytest.raises(ConfigError, match=r"^study s in sqlite:///.* has no running trial with the settings of this"):
        report(tmp_path, NEVER)
