"""Sweeps with real launchers, real mpirun and real signals; the jobs don't train."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, finished, stored

pytestmark = pytest.mark.slow

TESTS = ROOT / "tests"


def sweep(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep of jobs of two ranks each."""
    path = os.pathsep.join([str(TESTS / "sweep_ranks"), str(ROOT), *sys.path[1:]])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "150"}
    env.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(ROOT / "train.py"), "-m", "gpus=0", "ranks=2", "logger=none", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, f"hydra.sweep.dir={folder}"], env=env, cwd=ROOT, **pipes)


def listed(folder: Path) -> list[dict[str, str]]:
    """The rows of `multirun.csv`."""
    with open(folder / "multirun.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def started(folder: Path) -> set[str]:
    """The jobs that have begun."""
    return {path.parent.name for path in folder.glob("*/metrics.jsonl")}


def wait_until_started(folder: Path, jobs: set[str], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while started(folder) != jobs:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "launcher", [[], ["joblib", "n_jobs=2"], ["submitit_local"]], ids=lambda launcher: (launcher or ["basic"])[0]
)
def test_a_failing_job_does_not_stop_the_others(launcher: list[str], tmp_path: Path):
    chosen = [f"hydra/launcher={launcher[0]}", *(f"hydra.launcher.{text}" for text in launcher[1:])] if launcher else []
    out, err = (process := sweep(tmp_path, "seed=13,1,2", *chosen)).communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert f"error: 1 of 3 jobs failed; see {tmp_path}/multirun.csv" in err
    jobs = listed(tmp_path)
    assert [(job["job"], job["status"], job["best_mIoU"]) for job in jobs] == [
        *[("0", "failed", ""), ("1", "finished", "41.0"), ("2", "finished", "42.0")]
    ]
    assert jobs[0]["error"] == "images/7.png has no mask; add masks/7.png"
    assert jobs[1]["overrides"] == "gpus=0 ranks=2 logger=none seed=1"
    assert {path.parent.name for path in tmp_path.rglob("resolved.yaml")} == {"0", "1", "2"}, "one folder for each job"
    table = [line.split() for line in out.splitlines()]
    assert [line[:4] for line in table if line[:1] in (["0"], ["1"], ["2"])] == [
        ["0", "seed=13", "failed", "-"],
        ["1", "seed=1", "finished", "41.00"],
        ["2", "seed=2", "finished", "42.00"],
    ]
    assert "0: images/7.png has no mask; add masks/7.png" in out
    results = [stored(tmp_path / name / "result.json") for name in ("1", "2")]
    cores = len(os.sched_getaffinity(0))
    at_once = {"joblib": 2}.get((launcher or [""])[0], 1)
    for result in results:
        assert result["OMPI_COMM_WORLD_SIZE"] == "2"
        share = 2 if launcher == ["submitit_local"] else max(2, cores // at_once)
        assert result["OMP_NUM_THREADS"] == str(max(1, min(cores, share) // 2))
    first, second = sorted((result["began"], result["ended"]) for result in results)
    assert cores > 3 or first[1] <= second[0], "two jobs of two ranks each ran at once on fewer than four cores"


def test_ctrl_c_stops_the_sweep_and_sums_up(tmp_path: Path):
    process = sweep(tmp_path, "seed=1,100,2")
    wait_until_started(tmp_path, {"0", "1"}, process)
    process.send_signal(signal.SIGINT)
    told = finished(process, 130)
    assert f"the sweep was stopped, 2 of its jobs had begun; see {tmp_path}/multirun.csv" in told
    assert [(job["job"], job["status"]) for job in listed(tmp_path)] == [("0", "finished"), ("1", "stopped")]


def test_sigterm_reaches_the_jobs_of_joblib(tmp_path: Path):
    process = sweep(tmp_path, "seed=100,101,102", "ranks=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    wait_until_started(tmp_path, {"0", "1"} if len(os.sched_getaffinity(0)) > 1 else {"0"}, process)
    process.terminate()
    assert "\nthe sweep was stopped, " in finished(process, 143)
    assert {job["status"] for job in listed(tmp_path)} == {"stopped"}
