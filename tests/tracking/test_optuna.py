"""A job's place in an Optuna study, kept in a real storage."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.pfseg_optuna import OptunaSweeper, _distribution
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


def report(tmp_path: Path, trial: optuna.Trial, pruner: Any) -> TrialReporter:
    storage = f"sqlite:///{tmp_path}/s.db"
    reporter = TrialReporter(tmp_path / "run", pruner, storage, "s", trial._trial_id, Sink())
    reporter.record({"event": "start", "step": 0, "epoch": 0, "steps": STEPS})
    return reporter


def test_the_best_score_so_far_is_reported_to_the_jobs_own_trial(
    study: optuna.Study, tmp_path: Path, stopped: list[int]
):
    other, own = study.ask(), study.ask()
    reporter = report(tmp_path, own, NEVER)
    for epoch, miou in enumerate((10.0, 30.0, 20.0)):
        reporter.record(validation(epoch, miou))
    reporter.record({"event": "train", "step": 31, "epoch": 3, "train/loss": 1.0})
    reporter.finish()
    trials = stored(tmp_path)
    assert trials[other.number].intermediate_values == {} and "folder" not in trials[other.number].user_attrs
    assert trials[own.number].intermediate_values == {1: 10, 2: 30, 3: 30}
    assert trials[own.number].user_attrs == {"folder": str(tmp_path / "run")}
    assert not stopped and not reporter.pruned


def test_a_bad_trial_is_stopped_once_but_not_at_its_last_step(study: optuna.Study, tmp_path: Path, stopped: list[int]):
    reporter = report(tmp_path, study.ask(), ALWAYS)
    reporter.record(validation(1, 5.0))
    reporter.record(validation(2, 6.0))
    assert reporter.pruned and stopped == [signal.SIGUSR1]
    trial = stored(tmp_path)[0]
    assert trial.user_attrs["pruned_at_epoch"] == 2 and trial.intermediate_values == {2: 5}
    last = report(tmp_path, study.ask(), ALWAYS)
    last.record(validation(3, 5.0))  # step 40 of 40
    assert not last.pruned


def test_where_nobody_hears_the_signal_no_trial_is_stopped(study: optuna.Study, tmp_path: Path):
    reporter = report(tmp_path, study.ask(), ALWAYS)
    reporter.record(validation(0, 5.0))
    assert not reporter.pruned and stored(tmp_path)[0].intermediate_values == {1: 5}


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("choice(0.0,1.0,25.0)", CategoricalDistribution((0.0, 1.0, 25.0))),
        ("32,64", CategoricalDistribution((32, 64))),
        ("choice([1],[1,2])", CategoricalDistribution(("[1]", "[1,2]"))),
        ("range(1,6,2)", IntDistribution(1, 5, step=2)),
        ("range(0.5,2.0,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("shuffle(range(1,4))", CategoricalDistribution((1, 2, 3))),
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("tag(log,int(interval(1,512)))", IntDistribution(1, 512, log=True)),
    ],
)
def test_hydras_syntax_says_what_is_searched(text: str, distribution: BaseDistribution):
    override = OverridesParser.create().parse_override(f"a.b={text}")
    found = _distribution(override)
    if isinstance(found, CategoricalDistribution) and text.startswith("shuffle"):
        found = CategoricalDistribution(sorted(found.choices))
    assert found == distribution


def test_a_pruner_needs_a_stored_study():
    sweeper = OptunaSweeper(1, 1, {}, {}, study_name="s", storage=None)
    with pytest.raises(ConfigError, match=r"^pruner is set, but the study is kept in memory.*hydra.sweeper.storage="):
        sweeper.setup(hydra_context=None, task_function=None, config=OmegaConf.create({"pruner": {"_target_": "x"}}))


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[OptunaSweeper.__module__], "find_spec", lambda name: None)
    sweeper = OptunaSweeper(1, 1, {}, {})
    with pytest.raises(ConfigError, match=r"needs the package optuna: run `pip install 'pfseg\[sweep\]'`$"):
        sweeper.setup(hydra_context=None, task_function=None, config=OmegaConf.create({}))
