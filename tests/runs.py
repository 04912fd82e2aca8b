"""Tiny runs: of the real commands in processes of their own, and of a rank's work in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfseg.commands.app import main
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.launch.worker import job as run_worker
from pfseg.tracking.records import read_records

ROOT = Path(__file__).resolve().parent.parent
CPU = ["gpus=0", "ranks=1", "logger=none", "batch_size=2", "trainer.workers=0", "trainer.log_every=1"]
SMALL = ["model.fpn_dim=32", "model.match_dim=16", "dataset.crop_size=64", "schedule.warmup_steps=0"]
SCENES = ["dataset.size=64", "dataset.train_images=4", "dataset.val_images=3"]
LENGTH = ["trainer.max_epochs=2", "trainer.val_every=1", "trainer.bn_batches=0"]  # of 2 steps each
TINY = [*CPU, *SMALL, *SCENES, *LENGTH]
# One thread: networks as small as these gain nothing from a second one.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "COLUMNS": "200"}


def configured(*overrides: str) -> dict[str, Any]:
    """The checked settings of a training, as plain values."""
    return check(compose("train", overrides)).dump()


def worked(folder: Path, *overrides: str, stop: Callable[[], bool] = lambda: False, resume: bool = False) -> Any:
    """Do a rank's work in this process; returns what would become `result.json`."""
    config = configured(*TINY, *overrides)
    return run_worker(config | {"resume": str(folder) if resume else None}, folder, stop)


def command(name: str, *arguments: str) -> int:
    """`pfseg <name> <arguments>` in this process; returns its exit code."""
    before = [*sys.argv], [*sys.path]
    try:
        main(name, arguments)
    except SystemExit as end:
        return int(str(end.code))
    finally:
        sys.argv[:], sys.path[:] = before


def start(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a user would."""
    command = [sys.executable, str(ROOT / script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **pipes, **options)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command, expect its exit code and return what it told: all of a good one, errors of another."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
    return err if code else out


def train(folder: Path, *overrides: str, code: int = 0, **options: Any) -> str:
    """Train in processes of their own and wait."""
    return finished(start("train.py", *TINY, *overrides, f"hydra.run.dir={folder}", **options), code)


def resume(folder: Path, *overrides: str, code: int = 0, **options: Any) -> str:
    """Continue a run and wait."""
    return finished(start("train.py", f"resume={folder}", *overrides, **options), code)


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    """Rows of one kind of a run."""
    return [row for row in read_records(folder / "metrics.jsonl") if row["event"] == event]


def stored(path: Path) -> dict[str, Any]:
    """A JSON file; NaN and infinity, which JSON lacks, are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
