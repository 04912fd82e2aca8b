"""`pfseg train`: train a network; also what it shares with `pfseg evaluate`.

This process starts the job and shows what comes of it. The job runs in its ranks, see `pfseg.launch.driver` and
`pfseg.jobs`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pfseg.config.commands import Predict
from pfseg.config.run_settings import Slurm
from pfseg.config.schema import Evaluate, Train
from pfseg.config.targets import instantiate
from pfseg.config.training_checks import published_address
from pfseg.errors import PfsegError
from pfseg.files import shown
from pfseg.launch.driver import JobStopped, run_job
from pfseg.launch.lease import sole_use
from pfseg.launch.slurm import submit, write_script
from pfseg.launch.worker import Result
from pfseg.tracking import terminal
from pfseg.tracking.console import RunConsole
from pfseg.tracking.loggers import RunContext, make_loggers
from pfseg.tracking.optuna import TRIAL, TrialReporter
from pfseg.tracking.records import Sink
from pfseg.tracking.terminal import ConsoleProgress
from pfseg.weights import published


def run(settings: Train) -> float:
    """Train; returns the best validation mIoU in percent, NaN where SLURM will start the job."""
    _fetch_weights(settings)
    if isinstance(settings.launch, Slurm):
        submit_script(settings, settings.launch, output_dir())
        return math.nan
    return float(drive(settings, output_dir())["best/mIoU"])


def _fetch_weights(settings: Train) -> None:
    """Download the weights that `model.pretrained` names, here, where progress is seen and there is a network."""
    if settings.model.pretrained != published.NAME or settings.resume:
        return
    address = published_address(settings.model)
    with ConsoleProgress(terminal.console(), f"downloading {published.place(address).name}") as progress:
        published.fetch(address, progress.show)


def output_dir() -> Path:
    """The folder of this run, or of this job of a sweep."""
    return Path(HydraConfig.get().runtime.output_dir)


def submit_script(settings: Train | Evaluate | Predict, launch: Slurm, folder: Path) -> None:
    """Write a job script for SLURM into a folder, and hand it over if the settings say so."""
    console = RunConsole()
    script = write_script(folder, settings, launch, HydraConfig.get().overrides.task)
    console.message(submit(script) if launch.submit else f"submit it with: sbatch {shown(script)}")


def drive(settings: Train | Evaluate, folder: Path) -> Result:
    """Run a job in `folder` and show its telemetry; returns its result.

    Raises:
        JobError: the job failed or was stopped, or another command works in this folder.
    """
    with sole_use(folder):
        return _drive(settings, folder)


def _drive(settings: Train | Evaluate, folder: Path) -> Result:
    console = RunConsole(folder)
    console.show_config(settings.dump())
    sinks: list[Sink] = [console]
    code = 1
    try:
        hydra = HydraConfig.get()
        if trial := _trial(folder, settings, console):
            sinks.append(trial)
        group = hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else None
        for logger in make_loggers(RunContext(folder, settings.dump(), console, group)):
            sinks.append(logger)  # one by one: if the next one can't start, this one is finished
        try:
            result = run_job(folder, settings, sinks=sinks)
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


def _trial(folder: Path, settings: Train | Evaluate, console: Sink) -> TrialReporter | None:
    """The job's trial in an Optuna study, where it is part of one that cuts bad trials short."""
    if not isinstance(settings, Train) or settings.pruner is None:
        return None
    if TRIAL not in os.environ:
        console.message("pruner has no effect here: it acts in an Optuna study, -m hparams_search=...", "warning")
        return None
    sweeper, trial = HydraConfig.get().sweeper, int(os.environ[TRIAL])
    return TrialReporter(folder, instantiate(settings.pruner), sweeper.storage, sweeper.study_name, trial, console)
