"""A job that stands in for training in the launcher's tests; the configuration's `behave` says what happens."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pfseg.data.workers import start_tracker
from pfseg.errors import ConfigError, DataError
from pfseg.launch.watchdog import die_with_parent
from pfseg.launch.worker import main
from pfseg.tracking.records import RecordWriter

kept: list[Any] = []


class Settings(SimpleNamespace):
    """Settings of a job, and what it is told besides."""

    def dump(self) -> dict[str, Any]:
        return {key: vars(value) if key in ("launch", "dataset") else value for key, value in vars(self).items()}


def settings(launch: dict[str, Any] | None = None, **others: Any) -> Settings:
    """Settings of a job without GPUs."""
    mpi = {"name": "mpi", "timeout": None, "hosts": None, "interface": None}
    others = {"job": "train", "gpus": 0, "ranks": 1, "precision": "fp32", **others}
    return Settings(launch=SimpleNamespace(**(mpi | (launch or {}))), dataset=SimpleNamespace(root=None), **others)


class Mpi:
    """MPI itself, without Jittor."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.40"), mode=ctypes.RTLD_GLOBAL)
        self._world = ctypes.c_void_p(ctypes.addressof(ctypes.c_byte.in_dll(self._library, "ompi_mpi_comm_world")))
        self._library.MPI_Init(None, None)
        atexit.register(self._library.MPI_Finalize)

    def wait_for_others(self) -> None:
        # With Python's lock held, as Jittor does.
        ctypes.PyDLL(None, handle=self._library._handle).MPI_Barrier(self._world)


def job(config: dict[str, Any], folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Write a row for each step, and behave as told on the last rank."""
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    size = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    behave, last = config.get("behave", "well"), rank == size - 1
    writer = RecordWriter(folder / ("metrics.jsonl" if rank == 0 else f"rank{rank}.jsonl"))
    time.sleep(config.get("before", 0.0))
    # As a loading process or a compiler would be, which the launcher has to end where it outlives its rank.
    leftover = behave == "leftover" and rank == 0
    command = ["sh", "-c", "sleep 3600; true"] if leftover else ["sleep", "60"]
    child = subprocess.Popen(command, preexec_fn=None if leftover else die_with_parent)
    writer.write("start", step=0, epoch=0, pid=os.getpid(), parent=os.getppid(), child=child.pid)
    try:
        return _steps(config, folder, stop, writer, child, last)
    finally:
        if not leftover:
            child.kill()
            child.wait()


def _steps(
    config: dict[str, Any],
    folder: Path,
    stop: Callable[[], bool],
    writer: RecordWriter,
    child: subprocess.Popen[bytes],
    last: bool,
) -> dict[str, Any]:
    mpi = Mpi() if config.get("mpi") else None
    if last:
        _misbehave(config.get("behave", ""))
    if mpi:
        mpi.wait_for_others()
    for step in range(config.get("steps", 3)):
        if stop():
            assert child.poll() is None, "SIGUSR1 ended a child of the rank"
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.json").write_text("{}")
            return {"status": "stopped", "step": step}
        writer.write("train", step=step, epoch=0, **{"train/loss": 1.0 / (step + 1)})
        end = time.monotonic() + config.get("seconds", 0.0)
        while time.monotonic() < end:
            time.sleep(0.01)
    return {
        "status": "done",
        "ranks": int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _misbehave(behave: str) -> None:
    if behave == "compile":
        sys.stderr.write("\nCompiling Operators(3/12) used: 2.01s eta:   6s \rCompiling Operators(12/12) used:")
        sys.stderr.flush()
        time.sleep(0.3)
        sys.stderr.write(" 8.1s eta:    0s \r\nsomething else\n")
    elif behave == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif behave == "deadlock":
        wait_for_ever()
    elif behave == "compute":
        end = time.monotonic() + 7
        while time.monotonic() < end:
            sum(range(100000))
    elif behave == "read":
        end = time.monotonic() + 7
        while time.monotonic() < end:
            Path(sys.executable).read_bytes()
            time.sleep(0.5)
    elif behave == "child works":
        # With Python's lock held, as Jittor does: no other thread of the rank runs.
        ctypes.PyDLL(None).system(b"timeout 7 sh -c 'while :; do :; done'")
    elif behave == "lock":
        with tempfile.NamedTemporaryFile() as file:
            script = (
                "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); time.sleep(7)"
            )
            holder = subprocess.Popen([sys.executable, "-c", script, file.name], stdout=subprocess.PIPE)
            assert holder.stdout is not None and holder.stdout.readline()
            fcntl.flock(file, fcntl.LOCK_EX)
            holder.communicate()
    elif behave == "semaphore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a rank that is busy: mpirun then sends SIGKILL
        start_tracker()
        kept.append(multiprocessing.get_context("spawn").Lock())
        sys.stdout.write(f"semaphore {kept[0]._semlock.name}\n")
        sys.stdout.flush()
    elif behave == "raise":
        raise ValueError("the cat sat on the mask")
    elif behave == "user":
        raise DataError("images/7.png has no mask; add masks/7.png")
    elif behave == "config":
        raise ConfigError("crop_size=(500, 500) is not a multiple of 32; use 512")
    elif behave == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behave == "segfault":
        sys.stderr.write("last words\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif behave == "bus":
        os.kill(os.getpid(), signal.SIGBUS)
    elif behave == "jittor segfault":
        sys.stderr.write("Caught segfault at address 0x8, thread_name: '', flush log...\n")
        os._exit(1)
    elif behave == "leave":
        os._exit(0)


def wait_for_ever() -> None:
    """Do nothing, without using the processor."""
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), job))
