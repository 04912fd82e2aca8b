"""A job as a trial of an Optuna study: it reports its validations, and is stopped where the study's pruner says so.

The sweeper, `hydra_plugins.pfseg_optuna`, names the trial in the environment of the job.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from pfseg.tracking.records import Sink, StartRow, ValRow, figures

TRIAL = "PFSEG_TRIAL"  # variable with the trial's id in the storage
PRUNED = "pruned_at_epoch"  # attribute of a trial that was stopped
_STOP = signal.SIGUSR1  # which the launcher takes as the wish to save and leave


class TrialReporter(Sink):
    """Reports the best mIoU so far after each validation, and stops the job if `pruner`, of `optuna.pruners`, says so.

    The run folder becomes an attribute of the trial, which has this id in the storage of this URL. `pruned` is true
    after a stop, of which `console` is told.
    """

    def __init__(self, folder: Path, pruner: Any, storage: str, study_name: str, trial: int, console: Sink) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.RDBStorage(storage)
        study = optuna.load_study(study_name=study_name, storage=self._storage, pruner=pruner)
        self._trial = optuna.Trial(study, trial)
        self._trial.set_user_attr("folder", str(folder))
        self._console = console
        self._steps: int | None = None
        self._best = 0.0
        self.pruned = False

    def on_start(self, row: StartRow) -> None:
        """Note how long the run is."""
        self._steps = row.get("steps")

    def on_val(self, row: ValRow) -> None:
        """Report a validation, and stop the job where the pruner says so."""
        miou = figures(row, "val/").get("mIoU")
        if self.pruned or miou is None:
            return
        epoch = row["epoch"] + 1
        self._best = max(self._best, miou)
        self._trial.report(self._best, epoch)
        heard = callable(signal.getsignal(_STOP))  # not with launch=inline
        if row["step"] != self._steps and self._trial.should_prune() and heard:
            self.pruned = True
            self._trial.set_user_attr(PRUNED, epoch)
            score = f"best mIoU {self._best:.2f}"
            self._console.message(f"pruned after epoch {epoch}: below the study's other trials, {score}")
            signal.raise_signal(_STOP)

    def finish(self, exit_code: int = 0) -> None:
        """Let go of the storage."""
        self._storage.remove_session()
