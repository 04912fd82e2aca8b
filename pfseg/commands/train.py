"""`pfseg train`: train a network."""

from __future__ import annotations

from pfseg.commands.driving import drive, output_dir, submit_script
from pfseg.config.run_settings import Slurm
from pfseg.config.schema import Train


def run(settings: Train) -> float:
    """Train; returns the best validation mIoU in percent, NaN where SLURM will start the job.

    Raises:
        JobError: the job failed or was stopped.
    """
    if isinstance(settings.launch, Slurm):
        return submit_script(settings, settings.launch)
    return float(drive(settings, output_dir())["best/mIoU"])
