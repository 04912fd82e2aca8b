"""One rank of a job: `mpirun ... python -m pfseg.worker <run folder>`, started by `pfseg.launch`.

The rank reads `<folder>/resolved.yaml`, does the job that it describes and, on rank 0, writes `result.json`. A rank
that fails leaves `errors/rank<k>.json` and ends with exit code 1, upon which mpirun ends the others.

Loading processes started by `spawn` import this module again, so its imports stay light: no Jittor, no OpenCV.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfseg.errors import PfsegError
from pfseg.mpirun import die_with_parent
from pfseg.tracking.records import plain, write_atomic

Job = Callable[[dict[str, Any], Path, Callable[[], bool]], dict[str, Any]]


def job(config: dict[str, Any], folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Do the job that `config` describes; see `pfseg.build.run_worker`."""
    from pfseg.build import run_worker

    return run_worker(config, folder, stop)


def load_config(folder: Path) -> dict[str, Any]:
    """Read the resolved configuration of a run folder as the driver wrote it."""
    import yaml

    return yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))


def main(folder: Path, work: Job = job) -> int:
    """Run this rank's part of the job in `folder`.

    Args:
        folder: the run folder, with `resolved.yaml`.
        work: called with the configuration, the folder and `stop()`, which is True once SIGUSR1 has come;
            what it returns goes into `result.json`.

    Returns:
        0. A failing rank doesn't return: it leaves at once, past MPI_Finalize, which would wait for the others.
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
        _choose_gpu()
        result = work(load_config(folder), folder, stop)
        if rank == 0:
            write_result(folder, result)
    except BaseException as error:
        _report(folder, rank, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def stop() -> bool:
    """Tell whether this rank was asked to save its state and leave."""
    return signal.SIGUSR1 in signal.sigpending()


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`, which tells the driver that the job came to its end."""
    write_atomic(folder / "result.json", json.dumps(plain(result), indent=2, allow_nan=False) + "\n")


def _choose_gpu() -> None:
    """Show each rank of a host one GPU of its own, so that not all of them take the first."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if len(visible) > 1:
        local_rank = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank % len(visible)]


def _report(folder: Path, rank: int, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    row = {
        "rank": rank,
        "time": time.time(),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": text,
        "user": isinstance(error, PfsegError),
        "exit_code": getattr(error, "exit_code", 1),
    }
    try:
        write_atomic(folder / "errors" / f"rank{rank}.json", json.dumps(row, indent=2) + "\n")
    except PfsegError:  # a full disk: the driver shows the end of this rank's output instead
        sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
