"""`pfseg evaluate`: score checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

from pfseg.commands.train import drive, output_dir, submit_script
from pfseg.config.compose import run_folder
from pfseg.config.run_settings import Slurm
from pfseg.config.schema import Evaluate
from pfseg.files import write_atomic
from pfseg.tracking.console import RunConsole


def run(settings: Evaluate) -> float:
    """Score a checkpoint; returns the mIoU in percent and leaves `results.json` in the run folder.

    Several checkpoints are scored one after the other, each below its own run, and compared in the run folder; the
    highest mIoU is returned.
    """
    if isinstance(settings.launch, Slurm):
        submit_script(settings, settings.launch, output_dir())
        return math.nan
    if isinstance(settings.checkpoint, str):
        return _score(settings, output_dir())
    scores, folders = [], []
    for number, checkpoint in enumerate(settings.checkpoint):
        name = f"{output_dir().name}-{number}-{Path(checkpoint).stem}"
        folders.append(Path(run_folder(checkpoint)) / "evaluate" / name)
        scores.append(_score(settings.model_copy(update={"checkpoint": checkpoint}), folders[-1]))
    from pfseg.reporting.page import to_html
    from pfseg.reporting.runs import read_runs
    from pfseg.reporting.table import build_table, print_table, to_csv

    table = build_table(read_runs(folders))
    print_table(table, RunConsole().console)
    write_atomic(output_dir() / "comparison.html", to_html(table))
    write_atomic(output_dir() / "comparison.csv", to_csv(table))
    return max(scores, key=lambda miou: -1.0 if math.isnan(miou) else miou)


def _score(settings: Evaluate, folder: Path) -> float:
    miou = drive(settings, folder)["mIoU"]
    return math.nan if miou is None else float(miou)  # JSON has no NaN
