"""A job as a trial of an Optuna study: it reports its validations and is stopped where the study's pruner says so.

Hydra's Optuna sweeper tells the study a trial's outcome only when its job has returned, and knows no pruning. The
driver of a job therefore finds its own trial in the study's storage, reports the best mIoU so far after each
validation, and asks a pruner. A job that is stopped returns its best mIoU so far, so that the trial counts as complete
with that value; its attribute `pruned_at_epoch` tells it from the others, `folder` where it ran.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfseg.errors import ConfigError
from pfseg.tracking.records import Sink


class TrialReporter(Sink):
    """Reports the validations of a job to its trial, and stops the job if the trial is to be pruned.

    Args:
        folder: the run folder.
        pruner: decides, as one of `optuna.pruners`.
        storage: URL of the study's storage.
        study_name: of the study.
        overrides: of this job; the trial is the first running one that holds the same values and has no folder yet.
        console: told when the job is stopped.

    Attributes:
        pruned: the job was told to stop.

    Raises:
        ConfigError: the study keeps its trials in memory, or none of them is this job's.
    """

    def __init__(
        self,
        folder: Path,
        pruner: Any,
        storage: str | None,
        study_name: str | None,
        overrides: Sequence[str],
        console: Sink,
    ) -> None:
        """Find the trial."""
        import optuna

        if storage is None or study_name is None:
            raise ConfigError(
                "pruner is set, but the study is kept in memory, where its jobs can't report: set "
                "hydra.sweeper.storage=sqlite:///<file>.db and hydra.sweeper.study_name, or pruner=null"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.RDBStorage(storage)
        self._study = optuna.load_study(study_name=study_name, storage=self._storage)
        self._pruner, self._console = pruner, console
        self._steps: int | None = None
        self._best = 0.0
        self.pruned = False
        running = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        free = [trial for trial in running if "folder" not in trial.user_attrs and _fits(trial.params, overrides)]
        if not free:
            raise ConfigError(f"study {study_name} in {storage} has no running trial with the settings of this job")
        self._id = free[-1]._trial_id  # a study that was killed may have left earlier ones
        self._storage.set_trial_user_attr(self._id, "folder", str(folder))

    def record(self, row: dict[str, Any]) -> None:
        """Report a validation; the first row says how long the run is."""
        if row["event"] == "start":
            self._steps = row.get("steps")
        if row["event"] != "val" or self.pruned or row.get("val/mIoU") is None:
            return
        epoch = row["epoch"] + 1
        self._best = max(self._best, row["val/mIoU"])
        self._storage.set_trial_intermediate_value(self._id, epoch, self._best)
        if row["step"] != self._steps and self._pruner.prune(self._study, self._storage.get_trial(self._id)):
            self._stop(epoch)

    def finish(self, exit_code: int = 0) -> None:
        """Let go of the storage."""
        self._storage.remove_session()

    def _stop(self, epoch: int) -> None:
        if not callable(signal.getsignal(signal.SIGUSR1)):  # launch=inline: nobody would hear it
            return
        self.pruned = True
        self._storage.set_trial_user_attr(self._id, "pruned_at_epoch", epoch)
        self._console.message(f"pruned after epoch {epoch}: below the study's other trials, best mIoU {self._best:.2f}")
        signal.raise_signal(signal.SIGUSR1)  # which the launcher takes as the wish to save and leave


def _fits(params: dict[str, Any], overrides: Sequence[str]) -> bool:
    return {f"{name}={value}" for name, value in params.items()} <= set(overrides)
