"""What a sweep (`-m`) leaves besides its jobs: a table of them, `multirun.csv`, and one exit code.

A sweep that receives a stop signal ends its running jobs as a single run ends, starts no further ones, and summarises
those that ran. The file `.stopped` in its folder, with the exit code, tells the jobs and the sweep's driver.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pfseg.errors import ConfigError, JobError
from pfseg.files import load_yaml, shown, write_atomic
from pfseg.launch.driver import JobStopped
from pfseg.launch.lease import sole_use
from pfseg.reporting.runs import Run, find_runs, read_runs
from pfseg.reporting.table import build_table, csv_text, print_table
from pfseg.signals import handled
from pfseg.tracking import terminal

_MARK = ".stopped"
_COLUMNS = ("job", "overrides", "status", "best_mIoU", "best_step", "steps", "seconds", "error", "folder")


@contextmanager
def sweep(folder: Path) -> Iterator[None]:
    """Run a sweep inside, and sum it up at the end.

    Raises JobError if a job failed, the sweep was stopped, or another command works in its folder.
    """
    with sole_use(folder):
        (folder / _MARK).unlink(missing_ok=True)
        yield from _sweep(folder)


def _sweep(folder: Path) -> Iterator[None]:
    try:
        with handled((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), _stopper(folder)):
            yield
    except (Exception, KeyboardInterrupt) as error:
        runs = summarise(folder)
        if (code := stopped(folder)) is not None:
            text = f"the sweep was stopped, {len(runs)} of its jobs had begun; see {_csv(folder)}"
            raise JobStopped(text, code) from None
        failed = [run for run in runs if run.status not in ("finished", "stopped")]
        if isinstance(error, KeyboardInterrupt) or not failed:
            raise
        raise JobError(f"{len(failed)} of {len(runs)} jobs failed; see {_csv(folder)}") from error
    summarise(folder)


def mark_stopped(folder: Path, code: int) -> None:
    """Let no further job of the sweep start; `code` is what its driver ends with."""
    write_atomic(folder / _MARK, str(code))


def stopped(folder: Path) -> int | None:
    """The exit code of a sweep that was told to stop, None of another."""
    with suppress(OSError, ValueError):
        return int((folder / _MARK).read_text())
    return None


def summarise(folder: Path) -> list[Run]:
    """Show the jobs of a sweep that have started as a table, and write `multirun.csv`; returns them."""
    try:
        runs = read_runs(find_runs([str(folder)]))
    except ConfigError:  # none has started
        return []
    write_atomic(folder / "multirun.csv", csv_text(_COLUMNS, map(_row, runs)))
    console = terminal.console()
    print_table(build_table(runs, "run:asc"), console)
    terminal.line(console, f"written: {_csv(folder)}", "dim")
    return runs


def _row(run: Run) -> list[object]:
    overrides: object = None
    with suppress(ValueError):
        overrides = load_yaml(run.folder / ".hydra" / "overrides.yaml")
    words = " ".join(map(str, overrides)) if isinstance(overrides, list) else ""
    miou, step = (run.best.miou, run.best.step) if run.best else (None, None)
    seconds = None if run.seconds is None else round(run.seconds, 3)
    return [run.folder.name, words, run.status, miou, step, run.steps, seconds, run.detail, run.folder]


def _csv(folder: Path) -> str:
    return shown((folder / "multirun.csv").absolute())


# Signals


def _stopper(folder: Path) -> Callable[[int], None]:
    """A handler of signals that stops the sweep's jobs; a second Ctrl-C ends the sweep at once."""
    first: list[float] = []

    def stop(signum: int) -> None:
        if first and signum == signal.SIGINT and time.monotonic() - first[0] > 0.5:  # sooner it is the same key press
            raise KeyboardInterrupt
        first.append(time.monotonic())
        mark_stopped(folder, 128 + signum)
        drivers = _drivers()
        for pid in drivers:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        if not drivers:
            raise KeyboardInterrupt

    return stop


def _drivers() -> set[int]:
    """Processes below this one that wait for an mpirun: the drivers of running jobs."""
    drivers = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name() in ("mpirun", "prterun"):
                drivers.add(process.ppid())
    return drivers - {os.getpid()}
