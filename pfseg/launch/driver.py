"""The driver's side of a job: start mpirun, follow its records, bring the result back (no Jittor).

One process per job even for one rank: each job of a sweep starts with fresh GPU memory, and a crash ends one job. The
run folder is on this host only, where rank 0 runs; ranks on others get the configuration by their environment and
answer by their output.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pfseg.config.commands import Predict
from pfseg.config.schema import Evaluate, Train
from pfseg.devices import plan_nodes, plan_ranks
from pfseg.errors import ConfigError, JobError, WriteError
from pfseg.files import shown, write_atomic
from pfseg.launch.mpirun import POLL_SECONDS, STOPPING, Mpirun
from pfseg.launch.provenance import Environment, command_line, data_state, environment
from pfseg.launch.watchdog import Watch, told
from pfseg.launch.worker import pack_config, write_result
from pfseg.signals import handled
from pfseg.tracking.records import Follower, Sink

SILENCE_SECONDS = 3.0  # without a row or a compile line for so long, sinks hear that the job is still starting
_COMPILING = re.compile(r"Compiling ([\w ]+)\((\d+)/(\d+)\)\s+used:(?:.*?\beta:\s*([\d.e+]+))?")
_NOISE = "contact information is unknown in file"  # of mpirun, at each word for ranks of which some are on this host
_LOST_RANK = re.compile(r"process rank (\d+)")


class JobStopped(JobError):
    """A job that was told to stop, saved its state and left; `exit_code` is 143, 130 or 0."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_job(
    folder: Path,
    settings: Train | Evaluate | Predict,
    *,
    sinks: Sequence[Sink] = (),
    worker_module: str = "pfseg.launch.worker",
) -> dict[str, Any]:
    """Run one job in its folder, wait for its end, and return what it wrote into `result.json`.

    Each rank is `python -m worker_module`, whose `job(config, folder, stop)` does the work; their output is kept in
    `worker.log`. `sinks` hear of the job's telemetry; one that fails is left out from then on.

    Raises:
        ConfigError: the devices asked for are not there, or this process is itself a rank.
        JobError: a rank failed; the message is the first failing rank's, without more for an error of the user.
        JobStopped: the job was told to stop (SIGTERM, SIGINT, SIGUSR1 or `trainer.max_time`) and saved its state.
    """
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        raise ConfigError(
            "started by mpirun (OMPI_COMM_WORLD_RANK is set), expected one plain process: pfseg starts mpirun itself; "
            "type for instance `pfseg train ranks=2`"
        )
    folder = Path(folder).resolve()
    ranks, gpus = plan_ranks(settings)
    text = yaml.safe_dump(settings.dump(), sort_keys=False, allow_unicode=True)
    write_atomic(folder / "resolved.yaml", text)
    origin: Environment = {**environment(), "data": data_state(getattr(settings.dataset, "root", None))}
    write_atomic(folder / "environment.json", json.dumps(origin, indent=2) + "\n")
    commands = folder / "command.txt"
    earlier = commands.read_text(encoding="utf-8") if commands.exists() else ""
    write_atomic(commands, f"{earlier}{command_line()}\n")  # a line for the start and for each resumption
    for name in ("result.json", "error.txt"):  # of the run that is continued
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "errors", ignore_errors=True)

    watch = Watch(ranks, getattr(settings.launch, "timeout", None))
    telemetry = _Telemetry(folder, sinks, watch)
    try:
        if settings.launch.name == "inline":
            work = importlib.import_module(worker_module).job
            with telemetry.in_background():
                write_result(folder, work(settings.dump(), folder, lambda: False))
            return _ending(folder, settings, 0, None, telemetry)
        variables = pack_config(text) | ({} if gpus else {"PFSEG_DEVICE": "cpu"})
        nodes = plan_nodes(settings)
        process = Mpirun(["-m", worker_module, str(folder)], ranks, nodes, variables, telemetry, watch)

        def stop(number: int) -> None:
            if settings.job == "train" or number != signal.SIGUSR1:  # an evaluation may still end in time
                process.stop(number)

        with handled(STOPPING, stop):
            code = process.wait()
        return _ending(folder, settings, code, process, telemetry)
    finally:
        telemetry.close()


class _Telemetry:
    """What the driver hears from the ranks: rows of the records file and lines of output."""

    def __init__(self, folder: Path, sinks: Sequence[Sink], watch: Watch) -> None:
        self.sinks, self.watch = list(sinks), watch
        self.errors: list[dict[str, Any]] = []  # of ranks on hosts without the folder
        self.tail: collections.deque[str] = collections.deque(maxlen=30)
        self.lost_rank: str | None = None
        self.crashed = False
        self.listening = False
        self._follower = Follower(folder / "metrics.jsonl")
        self._log = open(folder / "worker.log", "ab", buffering=0)
        self._compiled: tuple[str, int, int, float | None] | None = None
        self._started, self._alive = time.monotonic(), False

    def line(self, text: str) -> None:
        """Take one line of the ranks' output; called by the reading thread."""
        if counts := _COMPILING.search(text):
            what = "Jittor" if "core" in counts[1] else "operators"
            self._compiled = (what, int(counts[2]), int(counts[3]), float(counts[4]) if counts[4] else None)
            self.watch.progress()
        elif row := told(text):
            if "listens" in row:
                self.listening = True
            elif "traceback" in row:
                self.errors.append(row)
            else:
                self.watch.hear(row)
        elif text.strip() and _NOISE not in text:
            self.watch.progress()
            self.tail.append(text)
            self.crashed = self.crashed or "Caught segfault" in text  # Jittor's handler, which then exits with 1
            if lost := _LOST_RANK.search(text):
                self.lost_rank = lost[1]
            self.log(text)

    def log(self, text: str) -> None:
        """Append to `worker.log`; where the disk is full, `tail` still holds the last lines."""
        with suppress(OSError):
            self._log.write(f"{text}\n".encode())

    def poll(self) -> None:
        """Hand on what has come since the last call."""
        if counts := self._compiled:
            self._compiled, self._alive = None, True
            self.tell("compiling", *counts)
        for row in self._follower.rows():
            self._alive = True
            self.watch.progress()
            self.tell("record", row)
        if not self._alive and (seconds := time.monotonic() - self._started) >= SILENCE_SECONDS:
            self.tell("waiting", seconds)

    def tell(self, method: str, *args: object) -> None:
        """Call each sink; leave out for good one that fails: it must not end a training."""
        for sink in list(self.sinks):
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                self.sinks.remove(sink)
                text = f"{type(sink).__name__} failed and is left out from here on: {type(error).__name__}: {error}"
                self.log(text)
                self.tell("message", text, "warning")

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Follow the records in a thread while the job runs in this process."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(POLL_SECONDS):
                self.poll()

        thread = threading.Thread(target=follow, name="pfseg-records", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.poll()

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def _ending(
    folder: Path, settings: Train | Evaluate | Predict, code: int, process: Mpirun | None, telemetry: _Telemetry
) -> dict[str, Any]:
    """Return the result, or raise what the ranks left behind."""
    resume = "; nothing was saved"
    if settings.job == "train" and any((folder / "checkpoints").glob("last.*")):
        resume = f"; go on with: pfseg train resume={shlex.quote(shown(folder))}"
    if hung := telemetry.watch.hung():
        raise JobError(f"{hung}{resume}")
    files = sorted((folder / "errors").glob("rank*.json"))
    errors = telemetry.errors + [json.loads(path.read_text(encoding="utf-8")) for path in files]
    if errors:
        raise _failure(min(errors, key=lambda row: row["time"]), folder, telemetry, resume)
    signum = process.signum if process else None
    exit_code = STOPPING[signal.Signals(signum)] if signum is not None else 0
    result = folder / "result.json"
    if code == 0 and result.exists():
        row: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        if row.get("status") != "stopped":
            return row
        raise JobStopped(f"stopped at step {row.get('step', '?')}{resume}", exit_code)
    if process and signum is not None and code in (128 + signal.SIGUSR1, -signal.SIGUSR1, -signal.SIGKILL):
        early = "stopped before the first step" if settings.job == "train" else "stopped"
        raise JobStopped(f"{early if process.early else 'killed'}{resume}", exit_code)
    if tail := "\n".join(telemetry.tail).strip():
        telemetry.tell("message", tail, "error")
    cause = _cause(139 if telemetry.crashed else code, telemetry.lost_rank)
    raise JobError(f"{cause}; full output: {shown(folder / 'worker.log')}")


def _failure(error: dict[str, Any], folder: Path, telemetry: _Telemetry, resume: str) -> JobError:
    if error["user"]:
        failure = JobError(error["message"] + (resume if error["type"] == WriteError.__name__ else ""))
    else:
        text = f"rank {error['rank']}: {error['type']}: {error['message'].partition(chr(10))[0]}"
        telemetry.log(error["traceback"])
        telemetry.tell("message", error["traceback"].rstrip(), "error")
        failure = JobError(f"{text}; traceback and full output: {shown(folder / 'worker.log')}")
    failure.exit_code = error["exit_code"]
    return failure


def _cause(code: int, lost_rank: str | None) -> str:
    rank = f"rank {lost_rank}" if lost_rank is not None else "a rank"
    number = code - 128 if code > 128 else -code
    if number == signal.SIGKILL:
        return f"{rank} was killed (exit code 137): often the machine ran out of memory; try a smaller batch_size"
    if number == signal.SIGSEGV:
        return f"{rank} crashed (segmentation fault, exit code 139)"
    if number == signal.SIGBUS:
        return (
            f"{rank} was ended by SIGBUS (exit code 135): often {tempfile.gettempdir()} or /dev/shm is full; free some "
            "space there, or set TMPDIR to a folder of another disk"
        )
    if number in set(signal.Signals):
        return f"{rank} was ended by {signal.Signals(number).name} (exit code {128 + number})"
    return f"the job ended without a result (exit code {code})"
