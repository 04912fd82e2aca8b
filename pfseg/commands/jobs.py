"""The command's own process: it chooses where telemetry goes, starts the job and shows what comes of it.

The job runs in its ranks, see `pfseg.launch.driver` and `pfseg.jobs`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pfseg.build import instantiate
from pfseg.config.compose import run_folder
from pfseg.errors import PfsegError
from pfseg.files import shown, write_atomic
from pfseg.launch.driver import JobStopped, run_job
from pfseg.launch.slurm import submit, write_script
from pfseg.tracking.console import RunConsole
from pfseg.tracking.loggers import RunContext, make_loggers
from pfseg.tracking.optuna import TrialReporter
from pfseg.tracking.records import Sink

Config = dict[str, Any]


def train(config: Config) -> float:
    """Train as configured; returns the best validation mIoU in percent, NaN where SLURM will start the job.

    Raises:
        JobError: the job failed or was stopped.
    """
    if config["launch"]["name"] == "slurm":
        return _prepare_submission(config)
    return float(_drive(config, _output_dir())["best/mIoU"])


def evaluate(config: Config) -> float:
    """Score a checkpoint as configured; returns the mIoU in percent and leaves `results.json` in the run folder.

    Several checkpoints are scored one after the other, each below its own run, and compared in the run folder; the
    highest mIoU is returned.

    Raises:
        JobError: the job failed or was stopped.
        CheckpointError: no checkpoint, or one that doesn't fit.
    """
    if config["launch"]["name"] == "slurm":
        return _prepare_submission(config)
    checkpoint = config["checkpoint"]
    if isinstance(checkpoint, str):
        return _evaluated(config, _output_dir())
    folders = [
        Path(run_folder(one)) / "evaluate" / f"{_output_dir().name}-{number}-{Path(one).stem}"
        for number, one in enumerate(checkpoint)
    ]
    found = [_evaluated(config | {"checkpoint": one}, at) for one, at in zip(checkpoint, folders, strict=True)]
    _compare(folders)
    return max(found, key=lambda miou: -1.0 if math.isnan(miou) else miou)


def _evaluated(config: Config, folder: Path) -> float:
    miou = _drive(config, folder)["mIoU"]
    return math.nan if miou is None else float(miou)  # JSON has no NaN


def _prepare_submission(config: Config) -> float:
    console = RunConsole()
    script = write_script(_output_dir(), config, HydraConfig.get().overrides.task)
    console.message(submit(script) if config["launch"]["submit"] else f"submit it with: sbatch {shown(script)}")
    return math.nan


def _compare(folders: list[Path]) -> None:
    """Show a table of evaluations, and leave it as a page and a CSV file."""
    from pfseg.reporting.page import to_html
    from pfseg.reporting.runs import read_runs
    from pfseg.reporting.table import build_table, print_table, to_csv

    table = build_table(read_runs(folders))
    print_table(table, RunConsole().console)
    write_atomic(_output_dir() / "comparison.html", to_html(table))
    write_atomic(_output_dir() / "comparison.csv", to_csv(table))


def _output_dir() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _drive(config: Config, folder: Path) -> Config:
    console = RunConsole(folder)
    console.show_config(config)
    sinks: list[Sink] = [console]
    code = 1
    try:
        trial = _trial(folder, config, console)
        sinks += [trial] if trial else []
        hydra = HydraConfig.get()
        group = hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else None
        for logger in make_loggers(RunContext(folder, config, console, group)):
            sinks.append(logger)  # one by one: if the next one can't start, this one is finished
        try:
            result = run_job(folder, config, sinks=sinks)
        except JobStopped:
            stored = folder / "result.json"
            if not (trial and trial.pruned and stored.exists()):
                raise
            result = json.loads(stored.read_text(encoding="utf-8"))
        code = 0
        return result
    except PfsegError as error:
        code = error.exit_code
        raise
    finally:
        for sink in reversed(sinks):
            sink.finish(code)


def _trial(folder: Path, config: Config, console: Sink) -> TrialReporter | None:
    """The job's trial in an Optuna study, where it is part of one that cuts bad trials short."""
    hydra = HydraConfig.get()
    if not config.get("pruner"):
        return None
    if hydra.mode != RunMode.MULTIRUN or "optuna" not in hydra.sweeper._target_:
        console.message("pruner has no effect here: it acts in an Optuna study, -m hparams_search=...", "warning")
        return None
    sweeper, pruner = hydra.sweeper, instantiate(config["pruner"])
    return TrialReporter(folder, pruner, sweeper.storage, sweeper.study_name, list(hydra.overrides.task), console)
