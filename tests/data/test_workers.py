from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfseg.data.workers import Workers
from pfseg.errors import DataError


def double(task: int) -> int:
    return 2 * task


def where(_: int) -> tuple[int, int, int]:
    time.sleep(0.05)
    return os.getpid(), os.getppid(), os.getpgrp()


def fail(task: int) -> int:
    if task == 3:
        raise DataError(f"task {task} is bad")
    return task


def die(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order(count):
    workers = Workers(double, count)
    assert list(workers.map(range(20), ahead=5)) == list(range(0, 40, 2))
    assert list(workers.map(range(3), ahead=5)) == [0, 2, 4]
    workers.close()


@pytest.mark.parametrize("count", [0, 2])
def test_only_so_many_tasks_are_taken_ahead(count):
    taken = []
    workers = Workers(double, count)
    results = workers.map((taken.append(task) or task for task in range(20)), ahead=4)
    next(results)
    assert len(taken) <= 5
    results.close()
    workers.close()


@pytest.mark.parametrize("count", [0, 1])
def test_errors_keep_their_type(count):
    workers = Workers(fail, count)
    with pytest.raises(DataError, match="task 3 is bad"):
        list(workers.map(range(5), ahead=2))
    assert list(workers.map(range(2), ahead=2)) == [0, 1]
    workers.close()


def test_a_killed_worker_is_an_error():
    workers = Workers(die, 2)
    with pytest.raises(DataError, match=r"a loading process was killed.*trainer.workers=0"):
        list(workers.map(range(5), ahead=2))
    assert list(workers.map(range(2), ahead=2)) == [0, 1]  # new processes start
    workers.close()


def test_workers_are_kept_and_leave_the_process_group():
    workers = Workers(where, 1)
    first, second = (next(workers.map(range(2), ahead=2)) for _ in range(2))
    assert first == second
    pid, parent, group = first
    assert parent == os.getpid() != pid
    assert group != os.getpgrp()
    workers.close()


SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from pfseg.data.workers import Workers

def pid(_):
    time.sleep(0.05)
    return os.getpid()

if __name__ == "__main__":
    workers = Workers(pid, 2)
    print(*set(workers.map(range(8), ahead=8)), flush=True)
    time.sleep(60)
"""


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parents[2])))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, pids))


BOMBARDED = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from pfseg.data.workers import Workers

def double(task):
    time.sleep(0.02)
    return 2 * task

def bombard():
    for _ in range(60):
        for number in numbers:
            os.killpg(0, number)
        time.sleep(0.02)

if __name__ == "__main__":
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    thread = threading.Thread(target=bombard)
    thread.start()
    workers = Workers(double, 2)
    assert list(workers.map(range(100), ahead=8)) == list(range(0, 200, 2))
    thread.join()
    workers.close()
"""


def test_signals_to_the_group_leave_workers_alone_from_the_start(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(BOMBARDED.format(root=str(Path(__file__).parents[2])))
    done = subprocess.run([sys.executable, str(script)], start_new_session=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
