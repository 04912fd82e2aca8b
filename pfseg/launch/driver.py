"""The driver's side of a job: start mpirun, follow its records, bring the result back (no Jittor).

One process per job even for one rank: each job of a sweep starts with fresh GPU memory, and a crash ends one job. The
run folder is on this host only, where rank 0 runs; ranks on others get the configuration by their environment and
answer by their output.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from pfseg.config.commands import Predict
from pfseg.config.schema import Evaluate, Train
from pfseg.devices import plan_nodes, plan_ranks
from pfseg.errors import ConfigError, JobError, WriteError
from pfseg.files import shown, write_atomic
from pfseg.launch.mpirun import Mpirun
from pfseg.launch.provenance import Environment, command_line, data_state, environment
from pfseg.launch.telemetry import Telemetry
from pfseg.launch.watchdog import RankError, Watch
from pfseg.launch.worker import Result, pack_config, write_result
from pfseg.signals import STOPPING, handled
from pfseg.tracking.records import Sink


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
) -> Result:
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
    telemetry = Telemetry(folder, sinks, watch)
    try:
        if settings.launch.name == "inline":
            work = importlib.import_module(worker_module).job
            with telemetry.in_background():
                write_result(folder, work(settings.dump(), folder, lambda: False))
            return _ending(folder, settings, 0, None, telemetry)
        variables = pack_config(text) | ({} if gpus else {"PFSEG_DEVICE": "cpu"})
        nodes = plan_nodes(settings)
        process = Mpirun(["-m", worker_module, str(folder)], ranks, nodes, variables, telemetry)

        def stop(number: int) -> None:
            if settings.job != "evaluate" or number != signal.SIGUSR1:  # which may still end in time
                process.stop(number)

        with handled(STOPPING, stop):
            code = process.wait()
        return _ending(folder, settings, code, process, telemetry)
    except JobError as error:
        if not isinstance(error, JobStopped):
            telemetry.tell("failed", str(error))
        raise
    finally:
        telemetry.close()


def _ending(
    folder: Path, settings: Train | Evaluate | Predict, code: int, process: Mpirun | None, telemetry: Telemetry
) -> Result:
    """Return the result, or raise what the ranks left behind."""
    resume = "" if settings.job == "predict" else "; nothing was saved"
    if settings.job == "train" and any((folder / "checkpoints").glob("last.*")):
        resume = f"; go on with: pfseg train resume={shlex.quote(shown(folder))}"
    if hung := telemetry.watch.hung():
        raise JobError(f"{hung}{resume}")
    files = sorted((folder / "errors").glob("rank*.json"))
    if errors := telemetry.errors + [json.loads(path.read_text(encoding="utf-8")) for path in files]:
        raise _failure(min(errors, key=lambda row: row["time"]), folder, telemetry, resume)
    signum = process.signum if process else None
    exit_code = STOPPING[signum] if signum is not None else 0
    result = folder / "result.json"
    if code == 0 and result.exists():
        done: Result = json.loads(result.read_text(encoding="utf-8"))
        if done.get("status") != "stopped":
            return done
        raise JobStopped(f"stopped at step {done.get('step', '?')}{resume}", exit_code)
    if process and signum is not None and code in (128 + signal.SIGUSR1, -signal.SIGUSR1, -signal.SIGKILL):
        early = "stopped before the first step" if settings.job == "train" else "stopped"
        raise JobStopped(f"{early if process.early else 'killed'}{resume}", exit_code)
    if tail := "\n".join(telemetry.tail).strip():
        telemetry.tell("message", tail, "error")
    cause = _cause(139 if telemetry.crashed else code, telemetry.lost_rank)
    raise JobError(f"{cause}; full output: {shown(folder / 'worker.log')}")


def _failure(error: RankError, folder: Path, telemetry: Telemetry, resume: str) -> JobError:
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
