"""What starting a job costs beside its work: `make bench-launch`.

Runs of `train.py` with one step of a small network. The time is split where processes start and files appear:

    start    train.py begins .. mpirun begins      imports of the driver, composing and checking the settings
    mpirun   .. the rank's Python begins
    work     .. `result.json` is written           imports of the rank and its work, which are no overhead
    end      .. train.py has ended                 the way out of the rank, mpirun and the driver

The driver's imports are timed by themselves and taken off `start`. Medians; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    *["gpus=0", "logger=none", "batch_size=2", "trainer.workers=0", "trainer.max_steps=1", "trainer.num_samples=0"],
    *["dataset.size=64", "dataset.crop_size=64", "dataset.train_images=2", "dataset.val_images=1"],
    *["trainer.bn_batches=0", "model.fpn_dim=32", "model.match_dim=16"],
]
IMPORTS = "import pfseg.commands.hydra_app, pfseg.commands.train"
POLL_SECONDS = 0.01
PARTS = ("start", "mpirun", "work", "end")


def run(folder: Path, ranks: int) -> dict[str, float]:
    """Seconds of each part of one run."""
    command = [sys.executable, str(ROOT / "train.py"), *SETTINGS, f"ranks={ranks}", f"hydra.run.dir={folder}"]
    marks = [time.time()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (folder / "command.txt").exists():  # the last file before mpirun
        time.sleep(POLL_SECONDS)
    parent = psutil.Process(process.pid)
    for _ in ("mpirun", "rank"):
        while not (children := parent.children()):
            time.sleep(POLL_SECONDS)
        parent = children[0]
        marks.append(parent.create_time())
    if process.wait():
        raise SystemExit(f"a run failed, see {folder / 'worker.log'}")
    marks += [(folder / "result.json").stat().st_mtime, time.time()]
    return {part: after - before for part, before, after in zip(PARTS, marks[:-1], marks[1:], strict=True)}


def imports() -> float:
    """Seconds of the driver's imports, the start of Python included."""
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=ROOT)
    return time.monotonic() - before


def rejected() -> float:
    """Seconds until a misspelt setting is rejected; the goal is 2."""
    before = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / "train.py"), "optimizer.lrr=3"], stderr=subprocess.DEVNULL)
    return time.monotonic() - before


def main() -> None:
    """Time all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="pfseg-launch-") as scratch:
        run(Path(scratch) / "compiles", args.ranks)
        for number in range(args.rounds):
            found.append(run(Path(scratch) / str(number), args.ranks) | {"imports": imports(), "rejected": rejected()})
    seconds = {part: statistics.median(row[part] for row in found) for part in (*PARTS, "imports", "rejected")}
    table = Table("part", "seconds", title=f"{args.ranks} ranks, {args.rounds} runs")
    for part in (*PARTS, "imports"):
        table.add_row("imports, of start" if part == "imports" else part, f"{seconds[part]:.2f}")
    overhead = seconds["start"] - seconds["imports"] + seconds["mpirun"] + seconds["end"]
    table.add_row("overhead: start - imports + mpirun + end", f"{overhead:.2f}", style="bold")
    table.add_row("a misspelt setting is rejected", f"{seconds['rejected']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
