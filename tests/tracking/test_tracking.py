"""Runs as the loggers tell of them: two jobs of two ranks in a sweep, and a run that loses a rank."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from logged import tensorboard_values, wandb_history, wandb_records
from runs import TINY, finished, rows, start

from pfseg.tracking.records import read_records

pytestmark = pytest.mark.slow

BOTH = "logger=[wandb,tensorboard]"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trainings of two ranks by one command."""
    folder = tmp_path_factory.mktemp("sweep")
    given = [setting for setting in TINY if not setting.startswith(("ranks", "logger", "batch_size"))]
    wanted = [BOTH, "logger.wandb.checkpoints=[last]", "trainer.log_grad_norm=true", "ranks=2", "batch_size=1"]
    finished(start("train.py", "-m", *given, *wanted, "seed=0,1", f"hydra.sweep.dir={folder}"))
    return [folder / "0", folder / "1"]


def only(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(record[kind] for record in records if record["type"] == kind)


def assert_complete(folder: Path, records: list[dict[str, Any]]) -> None:
    """Every value of metrics.jsonl is in the W&B run."""
    logged = {item["_step"]: item for item in wandb_history(records)}
    wanted = [row for row in read_records(folder / "metrics.jsonl") if row["event"] in ("train", "val")]
    assert wanted
    for row in wanted:
        known = {key: value for key, value in row.items() if key.startswith(f"{row['event']}/") and value is not None}
        assert known.items() <= logged[row["step"]].items(), row["step"]


def test_each_job_of_a_sweep_is_a_run_of_one_group(jobs: list[Path]):
    found = [wandb_records(job) for job in jobs]
    assert [len(runs) for runs in found] == [1, 1]
    first, second = (only(records, "run") for (records,) in found)
    assert first["run_group"] == second["run_group"] == str(jobs[0].parent)
    assert first["run_id"] != second["run_id"]
    assert [run["config"]["update"]["seed"] for run in (first, second)] == [0, 1]
    for job, (records,) in zip(jobs, found, strict=True):
        assert_complete(job, records)
        assert only(records, "exit").get("exit_code", 0) == 0


def test_a_run_tells_memory_gradients_pictures_and_its_origin(jobs: list[Path]):
    (records,) = wandb_records(jobs[0])
    logged = wandb_history(records)[-1]
    assert {"train/rank_mib", "train/grad_norm", "train/grad_norm/head", "train/lr", "train/seg"} <= logged.keys()
    assert {"val/classes.path", "val/samples.path", "best/mIoU", "val/mIoU"} <= logged.keys()
    media = next((jobs[0] / "wandb").glob("offline-run-*")) / "files" / "media"
    for name in ("masks", "boundaries", "edges"):
        assert len(list((media / "images" / "val").glob(f"{name}_4_*"))) == len(rows(jobs[0], "val")[-1]["samples"])
    assert len(list((media / "table" / "val").glob("confusion_table_4_*"))) == 1
    updates = [record["config"]["update"] for record in records if record["type"] == "config"]
    origin = next(update["environment"] for update in updates if "environment" in update)
    assert origin["ranks"] == 2 and "packages" in origin
    uploads = [record["artifact"] for record in records if record["type"] == "artifact"]
    assert [set(upload["aliases"]) - {"latest"} for upload in uploads if upload["type"] == "model"] == [
        {"last", "step-4"}
    ]


def test_tensorboard_holds_the_same_values(jobs: list[Path]):
    found = tensorboard_values(jobs[1])
    for row in [*rows(jobs[1], "train"), *rows(jobs[1], "val")]:
        for key, value in row.items():
            if key.startswith(("train/", "val/")) and value is not None:
                assert found[key, row["step"]][0].simple_value == pytest.approx(value, rel=1e-6)
    assert found["val/samples", 4][0].image.width > 0


def test_a_killed_rank_leaves_a_failed_run_with_every_row(tmp_path: Path):
    long = ["trainer.max_epochs=500", "trainer.val_every=500", BOTH]
    given = [setting for setting in TINY if not setting.startswith(("logger", "trainer.max_", "trainer.val_"))]
    process = start("train.py", *given, *long, f"hydra.run.dir={tmp_path}")
    try:
        while len(rows(tmp_path, "train")) < 8:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.kill(min(ranks(tmp_path)), signal.SIGKILL)
        said = finished(process, 1)
    finally:
        process.kill()
    assert "was killed (exit code 137)" in said
    (records,) = wandb_records(tmp_path)
    assert only(records, "exit")["exit_code"] == 1
    assert_complete(tmp_path, records)
    last = rows(tmp_path, "train")[-1]
    assert last["step"] >= 8 and last["time"] > time.time() - 120
    assert ("train/loss", last["step"]) in tensorboard_values(tmp_path)


def ranks(folder: Path) -> list[int]:
    """Processes with the command line of a rank: itself, and what it has forked since."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"pfseg.launch.worker", str(folder).encode()]:
            found.append(int(command.parent.name))
    return found
