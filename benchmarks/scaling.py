"""Two ranks of one thread beside one rank of two, at the same global batch: `make bench-scaling`.

Real trainings (`train.py`, mpirun, loading processes) take turns, so that both sides meet the same machine; the images
per second are read back from `metrics.jsonl`, without the first steps, and their ratio is taken turn by turn. A second
table times the sum over ranks (all-reduce) that training uses, by message size. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 128 << 20)  # bytes


def train(folder: Path, ranks: int, args: argparse.Namespace) -> float:
    """Images per second of a short training on two cores."""
    settings = [
        *[f"ranks={ranks}", f"batch_size={args.batch // ranks}", f"model={args.model}", "gpus=0", "logger=none"],
        *[f"dataset.crop_size={args.size}", f"dataset.size={args.size}", "dataset.val_images=1"],
        *[f"dataset.train_images={args.batch * args.steps}", "trainer.max_epochs=1", "trainer.log_every=1"],
        *["trainer.bn_batches=0", "trainer.num_samples=0", f"hydra.run.dir={folder}"],
    ]
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["train/images_per_s"] for row in rows if row["event"] == "train"]
    return statistics.median(speeds[min(3, len(speeds) - 1) :])


def job(config: dict[str, Any], folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Time the sum over ranks in each of them: seconds by message size."""
    from pfseg.runtime import jt

    found = {}
    for size in SIZES:
        values = jt.ones((size // 4,))
        times = []
        for _ in range(12):
            values.sync()
            began = time.perf_counter()
            values.mpi_all_reduce("add").sync()
            times.append(time.perf_counter() - began)
        found[str(size)] = statistics.median(times[2:])
    return {"status": "done", "seconds": found}


def all_reduce(folder: Path) -> dict[str, float]:
    """Seconds of a sum over two ranks by bytes."""
    from pfseg.config.check import checked
    from pfseg.config.compose import compose
    from pfseg.config.schema import Train
    from pfseg.launch.driver import run_job

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    settings = checked(compose("train", ["gpus=0", "ranks=2"]), Train)
    return run_job(folder, settings, worker_module="scaling")["seconds"]


def main() -> None:
    """Run both sides in turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pfnet_r18")
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images per update over all ranks")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    console = Console()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="pfseg-scaling-") as scratch:
        for turn in range(-1, args.turns):  # the first one compiles
            for ranks in (1, 2) if turn % 2 else (2, 1):
                speed = train(Path(scratch) / f"{turn}-{ranks}", ranks, args)
                if turn >= 0:
                    speeds[ranks].append(speed)
        seconds = all_reduce(Path(scratch) / "sums")
    table = Table("ranks x threads", "images/s (median)", "of 1 x 2 (median of turns)")
    ratio = statistics.median(two / one for one, two in zip(speeds[1], speeds[2], strict=True))
    table.add_row("1 x 2", f"{statistics.median(speeds[1]):.2f}", "1")
    table.add_row("2 x 1", f"{statistics.median(speeds[2]):.2f}", f"{ratio:.3f}")
    console.print(f"{args.model}, {args.size} px, global batch {args.batch}, {args.turns} turns")
    console.print(table)
    table = Table("message", "all-reduce of 2 ranks", "GB/s")
    for size, took in seconds.items():
        table.add_row(f"{int(size) / 2**20:.3g} MiB", f"{1e3 * took:.3g} ms", f"{int(size) / took / 1e9:.2f}")
    console.print(table)


if __name__ == "__main__":
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        from pfseg.launch.worker import main as rank_main

        sys.exit(rank_main(Path(sys.argv[1]), job))
    main()
