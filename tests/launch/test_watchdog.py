from __future__ import annotations

import sysconfig
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import pytest

from pfseg.launch import watchdog
from pfseg.launch.watchdog import Watch, _Meter, _place, told

LIMIT = 100.0


class FakeProcess:
    """A process that has used what its attributes say."""

    def __init__(self, pid: int, below: list[FakeProcess] | None = None) -> None:
        self.pid, self.below = pid, below or []
        self.user = self.system = self.ended = 0.0
        self.bytes = 0

    def children(self, recursive: bool) -> list[FakeProcess]:
        return self.below

    def oneshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(user=self.user, system=self.system, children_user=self.ended, children_system=0.0)

    def io_counters(self) -> SimpleNamespace:
        return SimpleNamespace(read_chars=self.bytes, write_chars=0)


class Job:
    """A watched job of two ranks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = 0.0, 0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.watch = Watch(2, LIMIT)

    def pass_time(self, seconds: int) -> bool:
        """Look once a second; True once the job is to be ended."""
        for _ in range(seconds):
            self.now += 1
            if self.watch.look(self.ask):
                return True
        return False

    def ask(self) -> None:
        self.asked += 1


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(monkeypatch)


def test_without_progress_ranks_are_asked_once_and_then_ended(job: Job) -> None:
    assert not job.pass_time(100) and job.watch.hung() is None
    assert not job.pass_time(1) and job.asked == 1
    job.watch.progress()  # what the signal did to them is none
    assert job.pass_time(2) and job.asked == 1 and job.now == 103


def test_progress_starts_the_time_anew(job: Job) -> None:
    for tell in (job.watch.progress, lambda: job.watch.hear({"progress": True})):
        assert not job.pass_time(90) and not job.asked
        tell()
    assert not job.pass_time(90) and not job.asked


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> FakeProcess:
    """A rank that has used something, with a process that it started."""
    process = FakeProcess(1, [FakeProcess(2)])
    process.user, process.system, process.bytes = 50.0, 20.0, 1 << 20
    monkeypatch.setattr("psutil.Process", lambda pid: process)
    monkeypatch.setattr(watchdog, "_waits_for_lock", lambda pids: False)
    return process


def test_work_is_progress(rank: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = _Meter(1, LIMIT)
    assert meter.busy() and not meter.busy()
    rank.user, rank.system = rank.user + 40.0, rank.system + 5.0
    assert meter.busy() and not meter.busy()
    rank.below[0].system += 2.0
    assert meter.busy() and not meter.busy()
    rank.ended += 2.0
    assert meter.busy() and not meter.busy()
    rank.bytes += 1 << 20
    assert meter.busy() and not meter.busy()
    monkeypatch.setattr(watchdog, "_waits_for_lock", lambda pids: set(pids) == {1, 2})
    assert meter.busy() and meter.busy()


def test_waiting_in_mpi_is_no_progress(rank: FakeProcess) -> None:
    meter = _Meter(1, LIMIT)
    meter.busy()
    for _ in range(50):
        rank.user, rank.system, rank.bytes = rank.user + 1.0, rank.system + 9.0, rank.bytes + 100
        rank.below[0].user += 0.01
        assert not meter.busy()
    rank.below[0].user += 1.0
    assert meter.busy()


def test_a_driver_that_was_stopped_has_seen_nothing_meanwhile(job: Job) -> None:
    job.now += 1000.0
    assert not job.pass_time(90) and not job.asked


def test_without_a_limit_nothing_is_ended(job: Job) -> None:
    job.watch = Watch(2, None)
    assert not job.pass_time(1000) and job.watch.hung() is None


def test_each_rank_is_named_with_its_place(job: Job) -> None:
    for rank in (0, 2, 3):
        job.watch.hear({"rank": rank, "host": "a"})
    job.watch = Watch(4, LIMIT)
    job.watch.hear({"rank": 0, "host": "a", "at": "engine/trainer.py:7 (step)"})
    job.watch.hear({"rank": 2, "host": "a", "at": "engine/trainer.py:7 (step)"})
    job.watch.hear({"rank": 3, "host": "b"})
    job.pass_time(101)
    assert job.watch.hung() == (
        "no progress for 100 s (config: launch.timeout): ranks 0, 2 on host a: engine/trainer.py:7 (step); "
        "rank 1 not started; rank 3 on host b: no answer"
    )


def test_the_place_is_the_innermost_of_our_own_code() -> None:
    library = sysconfig.get_path("purelib")
    dump = (
        "Current thread 0x00007f (most recent call first):\n"
        f'  File "{library}/jittor/__init__.py", line 1 in sync\n'
        f'  File "{library}/pfseg/engine/trainer.py", line 215 in _train_step\n'
        f'  File "{library}/pfseg/launch/worker.py", line 9 in main\n'
    )
    assert _place(dump) == "engine/trainer.py:215 (_train_step)"
    assert _place(f'  File "{library}/jittor/a.py", line 1 in f\n') == "jittor/a.py:1 (f)"
    assert _place("") == "an unknown place"


def test_lines_that_are_no_rows() -> None:
    assert told("a line") is None
    assert told('\x1epfseg {"rank": 1') is None
    assert told('\x1epfseg {"rank": 1}') == {"rank": 1}
