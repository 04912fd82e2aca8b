"""A sweep whose jobs are real mpirun jobs without training: `python sweep_job.py -m seed=1,13`; seed 13 fails."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfseg.config.schema import Train
from pfseg.errors import DataError
from pfseg.launch.worker import main as rank_main
from pfseg.tracking.records import RecordWriter


def job(config: dict[str, Any], folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Record a validation of 40 + seed % mIoU; seed 100 and above wait until they are stopped."""
    if config["seed"] == 13:
        raise DataError("images/7.png has no mask; add masks/7.png")
    began = time.time()
    if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        records = RecordWriter(folder / "metrics.jsonl")
        records.write("start", step=0, epoch=0, steps=2, classes=["land"])
        records.write("val", step=2, epoch=0, **{"val/mIoU": 40.0 + config["seed"]})
        while config["seed"] >= 100 and not stop():
            time.sleep(0.05)
    status = "stopped" if config["seed"] >= 100 else "done"
    names = ("OMP_NUM_THREADS", "OMPI_COMM_WORLD_SIZE")
    return {"status": status, "step": 2, "began": began, "ended": time.time()} | {n: os.environ[n] for n in names}


def run(settings: Train) -> float:
    """Run one job as a command does."""
    from hydra.core.hydra_config import HydraConfig

    from pfseg.launch.driver import run_job

    return float(run_job(Path(HydraConfig.get().runtime.output_dir), settings, worker_module="sweep_job")["step"])


if __name__ == "__main__":
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        sys.exit(rank_main(Path(sys.argv[1]), job))

    from sweep_job import run as importable  # by this name the launchers find it in other processes

    from pfseg.config.compose import main

    main(importable, "train")
