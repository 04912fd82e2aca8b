"""Processes that prepare samples beside the training process.

The training process has Jittor and MPI loaded and must not be forked: workers start from a fresh interpreter.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from typing import Any

import cv2

from pfseg.errors import DataError

_PR_SET_PDEATHSIG = 1
_GROUP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_job: Any = None  # what this worker process calls; set once when it starts


class Workers:
    """Runs `job(task)` for a sequence of tasks in order, some tasks ahead.

    The job is pickled to each of the processes once; 0 `workers` run everything in this one. They start with the first
    task.
    """

    def __init__(self, job: Callable[[Any], Any], workers: int) -> None:
        self.job, self.workers = job, workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, tasks: Iterable[Any], *, ahead: int) -> Iterator[Any]:
        """Yield the results in the order of the tasks, at most `ahead` of them waiting.

        Raises:
            DataError: a worker was killed; or whatever the job raised.
        """
        if self.workers == 0:
            yield from map(self.job, tasks)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                waiting.append(self._submit(task))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            self.close()
            raise DataError(
                "a loading process was killed, probably for lack of memory, or did not start; "
                "use fewer of them or load in the training process (config: trainer.workers=0)"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _submit(self, task: Any) -> Future[Any]:
        if self._pool is None:
            start_tracker()
            self._pool = ProcessPoolExecutor(
                self.workers, get_context("spawn"), initializer=_start, initargs=(self.job, os.getpid())
            )
        # Processes start within submit and inherit the blocked signals until they have left the group.
        with _signals_blocked():
            return self._pool.submit(_run, task)


def start_tracker() -> None:
    """Start Python's resource tracker, which removes semaphores of dead processes, where no signal to a group ends it.

    It starts apart from the pool, because it unblocks two of the signals.
    """
    with _signals_blocked(), _other_group():
        resource_tracker.ensure_running()


@contextmanager
def _other_group() -> Iterator[None]:
    """Let a rank of mpirun, which kills whole process groups, start processes in another one."""
    if "OMPI_COMM_WORLD_RANK" not in os.environ or os.getpgid(0) != os.getpid():
        yield
        return
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0) as leader:  # its end doesn't end the group
        os.setpgid(0, leader.pid)
        try:
            yield
        finally:
            os.setpgid(0, 0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(job: Callable[[Any], Any], parent: int) -> None:
    """Prepare a worker process: it leaves the process group, and dies with its parent instead."""
    # Signals to the group (Ctrl-C, mpirun's SIGTERM and SIGUSR1) are the training process's business, so that a
    # stopping run can finish its step.
    global _job
    os.setsid()
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # drops those that came before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
    for number in _GROUP_SIGNALS - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)  # the pool ends its processes by SIGTERM
    with suppress(AttributeError):  # not Linux: the pool's own pipe ends the worker when it is idle
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    cv2.setNumThreads(0)
    _job = job


def peak_mib() -> int:
    """Largest memory that this process has used so far, in MiB; 0 where the system does not report it."""
    # getrusage would not do: a started process inherits the figure of the one that started it.
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


def _run(task: Any) -> Any:
    return _job(task)
