"""What tracking costs: `make bench-tracking`.

Trainings with `logger=none` and with all there is (W&B offline, TensorBoard, gradient norms, every step logged) take
turns. A step's time is the difference between two neighbouring rows of `metrics.jsonl`, which both sides write; the
first steps, in which operators are compiled, are left out, and medians are shown. Settings are passed on:

    make bench-tracking ARGS="--rounds 5 model=pfnet_r50 dataset.crop_size=256"
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from rich.progress import track

from pfseg.tracking import terminal
from pfseg.tracking.records import read_records

ROOT = Path(__file__).resolve().parent.parent
SIDES = {
    "no logger": ["logger=none"],
    "wandb, tensorboard, grad norms": ["logger=[wandb,tensorboard]", "trainer.log_grad_norm=true"],
}
WARM_UP = 5  # steps


def step_times(folder: Path) -> list[float]:
    """Seconds of each step of a run but for the first ones and those behind a validation."""
    rows = [row for row in read_records(folder / "metrics.jsonl") if row["event"] != "progress"]
    pairs = [(before, row) for before, row in pairwise(rows) if before["event"] == row["event"] == "train"]
    return [row["time"] - before["time"] for before, row in pairs if before["step"] >= WARM_UP]


def run(folder: Path, steps: int, overrides: list[str]) -> list[float]:
    """Train; returns the steps' times in seconds."""
    length = [f"trainer.max_steps={steps}", "trainer.max_epochs=null", "trainer.val_every=1000", "trainer.log_every=1"]
    command = [sys.executable, str(ROOT / "train.py"), *length, *overrides, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return step_times(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of tracking, in step time.")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each side")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run")
    args, overrides = parser.parse_known_args()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(args.rounds), "rounds"):
            for side, loggers in SIDES.items():
                times[side] += run(Path(folder) / f"{number} {side[:2]}", args.steps, [*loggers, *overrides])
    heads = ("steps", "median ms", "quartiles ms", "beside none")
    table = terminal.table("", *heads, numbers=heads, title="Step times with and without loggers")
    base = statistics.median(times["no logger"])
    for side, seconds in times.items():
        low, middle, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
        share = f"{100 * (middle / 1000 / base - 1):+.1f} %"
        table.add_row(side, str(len(seconds)), f"{middle:.0f}", f"{low:.0f} to {high:.0f}", share)
    terminal.console().print(table)


if __name__ == "__main__":
    main()
