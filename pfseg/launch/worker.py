"""One rank of a job: `mpirun ... python -m pfseg.launch.worker <run folder>`, started by `pfseg.launch.driver`.

A rank that fails leaves `errors/rank<k>.json`, or tells the driver on a host without the run folder, and ends with exit
code 1, upon which mpirun ends the others. Loading processes started by `spawn` import this module again, so its imports
stay light: no Jittor, no OpenCV.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pfseg.compiler import explained
from pfseg.devices import choose_gpus
from pfseg.errors import ConfigError, PfsegError
from pfseg.files import plain, write_atomic, write_fault
from pfseg.launch.watchdog import RankError, accompany, die_with_parent, tell

_CONFIG = "PFSEG_JOB"  # the variable with the configuration
Config = dict[str, Any]  # resolved settings, as `resolved.yaml` holds them
Result = Mapping[str, Any]  # what becomes `result.json`: its `status`, and figures
Job = Callable[[Config, Path, Callable[[], bool]], Result]


def job(config: Config, folder: Path, stop: Callable[[], bool]) -> Result:
    """Do the job that `config` describes; see `pfseg.jobs`."""
    from pfseg.config.commands import load  # loading processes need not

    settings = load(config)
    result: Result = importlib.import_module(f"pfseg.jobs.{config['job']}").run(settings, folder, stop)
    return result


def pack_config(text: str) -> dict[str, str]:
    """Pack the configuration, which is YAML text, into the variable by which ranks get it."""
    return {_CONFIG: base64.b64encode(zlib.compress(text.encode())).decode()}


def take_config() -> Config:
    """Take the configuration out of the environment, which later children then don't inherit."""
    import yaml

    config: Config = yaml.safe_load(zlib.decompress(base64.b64decode(os.environ.pop(_CONFIG))))
    return config


def main(folder: Path, work: Job = job) -> int:
    """Run this rank's part of the job in `folder`, which may not exist on this rank's host; returns 0.

    `work` is called with the configuration, the folder and `stop()`, which is True once SIGUSR1 has come; what it
    returns goes into `result.json`. A failing rank leaves at once, past MPI_Finalize, which would wait for the others.
    """
    # mpirun sends SIGUSR1 to the rank and all its children: a handler would leave compilers and loading processes to
    # die of it, and break Jittor's file lock. Ignored, also by children; and blocked, so that it stays pending for
    # `stop` to find (Linux keeps a blocked signal even if it is ignored).
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    die_with_parent()
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    try:
        config = take_config()
        limit = config["launch"].get("timeout")
        if limit is not None:
            accompany(rank, limit)
        _choose_devices(config)
        result = work(config, folder, stop)
        if rank == 0:
            write_result(folder, result)
    except BaseException as error:
        _report(folder, rank, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def stop() -> bool:
    """Tell whether this rank was asked to save its state and leave; the first call tells the driver that it listens."""
    _listen()
    return signal.SIGUSR1 in signal.sigpending()


@cache
def _listen() -> None:
    tell({"listens": True})


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`, which tells the driver that the job came to its end."""
    write_atomic(folder / "result.json", json.dumps(plain(result), indent=2, allow_nan=False) + "\n")


def _choose_devices(config: Config) -> None:
    """Give each rank of a host its share of the cores, and a GPU of its own."""
    local_rank = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
    local_size = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // local_size)))
    if os.environ.get("PFSEG_DEVICE") == "cpu":
        return
    gpus = choose_gpus(config["gpus"])
    if not gpus:
        raise ConfigError(
            f"host {socket.gethostname()} has no GPU but the one that started the job has: "
            "leave it out of launch.hosts, or add gpus=0"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank % len(gpus)]


def _report(folder: Path, rank: int, error: BaseException) -> None:
    error = write_fault(error) or explained(error)
    report: RankError = {
        "rank": rank,
        "time": time.time(),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "user": isinstance(error, PfsegError),
        "exit_code": getattr(error, "exit_code", 1),
    }
    try:
        if not (folder / "resolved.yaml").exists():
            raise FileNotFoundError(folder)
        write_atomic(folder / "errors" / f"rank{rank}.json", json.dumps(report, indent=2) + "\n")
    except (PfsegError, FileNotFoundError):  # a full disk, or another host
        tell({"error": report})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
