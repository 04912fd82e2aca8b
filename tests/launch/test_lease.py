from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from stand_in import settings

from pfseg.errors import JobError, WriteError
from pfseg.launch.lease import _share, hold, lease, sole_use


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def work(count: int, queue: Any) -> None:
    with hold(["a", "b", "c"], count, lambda text: None) as held:
        began = time.monotonic()
        time.sleep(0.3)
        queue.put((began, time.monotonic(), held))


def test_nothing_is_held_twice_at_a_time():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(count, queue)) for count in (1, 2, 3, 1, 2)]
    for process in processes:
        process.start()
    spans = [queue.get(timeout=60) for _ in processes]
    assert sorted(len(held) for *_, held in spans) == [1, 1, 2, 2, 3]
    for i, (began, ended, held) in enumerate(spans):
        for other_began, other_ended, other in spans[:i]:
            assert ended <= other_began or other_ended <= began or not set(held) & set(other)
    assert any(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(spans) for b in spans[:i]), "never two at once"


def test_who_has_to_wait_is_told_once():
    told: list[str] = []
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=work, args=(3, queue))
    process.start()
    while process.is_alive() and not told:
        with hold(["a", "b", "c"], 2, told.append):
            pass
    process.join()
    assert told == ["waiting for 2 of a, b, c, in use by other jobs"]


def test_a_job_takes_a_gpu_that_is_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pfseg.launch.lease.visible_gpus", lambda: ["0", "2", "5"])
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: ["0", "2", "5"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with lease(settings(gpus=1), {}, print):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with hold(["gpu-0"], 1, print), lease(settings(gpus=2, ranks=2), {}, print):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"
        with lease(settings(gpus=[0]), {"_target_": "SlurmLauncher"}, print):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5", "SLURM has given the job its own"


@pytest.mark.parametrize(
    ("launcher", "threads", "share"),
    [
        ({}, None, 8),
        ({"_target_": "JoblibLauncher (joblib)", "n_jobs": 2}, None, 4),
        ({"_target_": "joblib", "n_jobs": -1}, None, 2),
        ({"_target_": "submitit", "cpus_per_task": None}, None, 2),
        ({"_target_": "submitit", "cpus_per_task": 3}, None, 3),
        ({}, "3", 6),
        ({}, "9", 8),
    ],
)
def test_cores_of_a_job_of_two_ranks(launcher: dict[str, Any], threads: str | None, share: int, monkeypatch: Any):
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert _share(launcher, ranks=2, cores=8) == share


def test_a_folder_is_used_by_one_command_at_a_time(tmp_path: Path):
    with sole_use(tmp_path), pytest.raises(JobError, match=r"is in use by another command: wait for its end"):
        sole_use(tmp_path).__enter__()
    with sole_use(tmp_path):  # free again
        pass
    with pytest.raises(WriteError, match=r"can't be written \(Not a directory\)"):
        sole_use(Path(os.devnull, "run")).__enter__()
