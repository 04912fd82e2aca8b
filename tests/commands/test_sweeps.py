"""Sweeps as they are written: each file of sweep/ with two tiny trials, and an Optuna study killed and continued."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import wandb
import yaml
from config.test_experiments import fake
from logged import wandb_history, wandb_records
from runs import ENVIRONMENT, ROOT, SCENES, TINY, configured, finished, start, stored
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from pfseg.commands.app import main

pytestmark = pytest.mark.slow

SWEEP = ROOT / "sweep"
ONCE = ["trainer.max_epochs=1", "launch=inline"]
TWO = {  # settings of a file that leave two trials, with sizes that other tests have compiled
    "grid": ["loss.edge_weight=1"],
    "seeds": ["seed=0,1"],
    "ablation_branches": ["model.num_edge_points=128", "loss.edge_weight=1", "seed=0"],
    "ablation_points": ["model.num_edge_points=128,256", "model.salient_pool=14", "seed=0"],
    "ablation_sizes": ["model.match_dim=16", "model.edge_pool=9"],
    "edge_weight_dubai": ["loss.edge_weight=1"],
}


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run train.py in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main("train")
    assert ended.value.code == 0


def settings(folder: Path) -> list[dict[str, Any]]:
    """The stored settings of each finished job of a sweep, in order."""
    jobs = sorted(path.parent for path in folder.glob("*/resolved.yaml"))
    assert all(stored(job / "result.json")["status"] == "done" for job in jobs)
    return [yaml.safe_load((job / "resolved.yaml").read_text()) for job in jobs]


def test_every_file_is_tested():
    assert {path.stem for path in SWEEP.iterdir()} == {*TWO, *(path.stem for path in WANDB), "README"}


@pytest.mark.parametrize("name", TWO)
def test_a_hydra_sweep(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, *words, after = shlex.split((SWEEP / f"{name}.sh").read_text().replace("\\\n", " "), comments=True)
    assert (before, words[:3], after) == ("exec", ["python", "train.py", "-m"], "$@")
    tiny = [*TINY, *ONCE, *TWO[name], f"hydra.sweep.dir={tmp_path}/jobs"]
    if name == "edge_weight_dubai":
        fake(tmp_path, configured("dataset=dubai", f"dataset.root={tmp_path}")["dataset"], 64)
        tiny = [f"dataset.root={tmp_path}", *(setting for setting in tiny if setting not in SCENES)]
    if name == "seeds":  # the ends of the command as they are: in processes of their own
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["sh", str(SWEEP / "seeds.sh"), *tiny],
            env={**ENVIRONMENT, "PATH": path}, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        finished(process)
    else:
        command(*words[2:], *tiny, monkeypatch=monkeypatch)
    first, second = settings(tmp_path / "jobs")
    different = {key for key in ("seed", "loss", "model", "optimizer") if first[key] != second[key]}
    assert len(different) == 1


# W&B: no server here, so the agent's part is done with W&B's own code that makes its command lines


WANDB = sorted(SWEEP.glob("wandb_*.yaml"))


def points(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two points of the search space: all lowest and all highest values, or the first two of a grid."""
    parameters = sweep["parameters"]
    ends = {key: value.get("values") or [value["min"], value["max"]] for key, value in parameters.items()}
    if sweep["method"] == "grid":
        grid = (dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values()))
        yield from itertools.islice(grid, 2)
    else:
        yield from ({key: values[end] for key, values in ends.items()} for end in (0, -1))


@pytest.fixture
def forgetful() -> Iterator[None]:
    """W&B keeps an agent's run and sweep for the rest of the process otherwise."""
    yield
    wandb.teardown()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("file", WANDB, ids=lambda path: path.stem)
def test_a_wandb_sweep(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["method"] == file.stem.removeprefix("wandb_")
    assert sweep["metric"] == {"name": "best/mIoU", "goal": "maximize"}
    for number, point in enumerate(points(sweep)):
        arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
        line = create_sweep_command(list(sweep["command"]))
        assert line[:3] == ["${env}", "python", "train.py"] and line[-1] == "${args_no_hyphens}"
        line[-1:] = arguments["args_no_hyphens"]
        run, folder = f"agent{number}", tmp_path / str(number)
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
        monkeypatch.setenv("WANDB_RUN_ID", run)
        wandb.teardown()  # an agent starts a process for each run; within one, W&B would keep the first run's id
        # The built-in settings are shrunk, the sweep's own ones stay: what is given first gives way.
        tiny = [setting for setting in (*TINY, *ONCE) if setting.partition("=")[0] not in {"logger", *point}]
        command(*tiny, *line[3:], f"hydra.run.dir={folder}", monkeypatch=monkeypatch)
        (records,) = wandb_records(folder)
        assert next(record["run"] for record in records if record["type"] == "run")["run_id"] == run
        last = wandb_history(records)[-1]
        assert last["best/mIoU"] == stored(folder / "result.json")["best/mIoU"]


# Optuna


def study(folder: Path, *arguments: str) -> list[str]:
    tiny = [setting for setting in TINY if not setting.startswith("model.match_dim")]
    place = [f"hydra.sweeper.storage=sqlite:///{folder}/study.db", f"hydra.sweep.dir={folder}/jobs"]
    space = ["optimizer.lr=choice(-1,0.001)", "loss.edge_weight=1.0", "model.num_edge_points=128", "model.match_dim=16"]
    return ["-m", "hparams_search=pfnet_optuna", *tiny, *place, *space, *arguments]


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="pfnet_optuna", storage=f"sqlite:///{folder}/study.db").trials


def reported(folder: Path) -> bool:
    """Whether a trial has told a score; the study may still be in the making."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/study.db?mode=ro", uri=True)) as database:
            return database.execute("select count(*) from trial_intermediate_values").fetchone() > (0,)
    except sqlite3.OperationalError:
        return False


@pytest.mark.filterwarnings("ignore:The value of the smallest subnormal")  # after Jittor was imported here
def test_an_optuna_study_is_killed_continued_and_prunes(tmp_path: Path):
    # The sampler's seed gives a learning rate that is refused twice, then a good one.
    first = start("train.py", *study(tmp_path, "hydra.sweeper.sampler.seed=6", "hydra.sweeper.n_trials=9"))
    try:
        while not reported(tmp_path):
            assert first.poll() is None, first.communicate()
            time.sleep(0.2)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    *failed, killed = trials(tmp_path)
    assert len(failed) == 2 and all(
        trial.state.name == "FAIL" and trial.params == {"optimizer.lr": -1} for trial in failed
    )
    assert killed.state.name == "RUNNING" and killed.params == {"optimizer.lr": 0.001}
    assert Path(killed.user_attrs["folder"]).is_relative_to(tmp_path / "jobs")

    pruner = ["pruner._target_=optuna.pruners.ThresholdPruner", "+pruner.lower=101"]
    pruner += ["~pruner.n_startup_trials", "pruner.n_warmup_steps=0"]
    again = ["hydra.sweeper.n_trials=1", "optimizer.lr=0.002", f"hydra.sweep.dir={tmp_path}/more", *pruner]
    said = finished(start("train.py", *study(tmp_path, *again)))
    last = trials(tmp_path)[-1]
    assert len(trials(tmp_path)) == len(failed) + 2 and last.state.name == "PRUNED"
    assert last.user_attrs["pruned_at_epoch"] == 1 and "pruned after epoch 1: below the study's" in said
    result = stored(tmp_path / "more" / "0" / "result.json")
    assert result["status"] == "stopped" and result["step"] < 4 and last.value == result["best/mIoU"]
