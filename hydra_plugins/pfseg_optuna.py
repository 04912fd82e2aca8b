"""Sweeps by Optuna: a sweeper of Hydra that asks a study for the settings of each job and tells it what came of them.

A job is a trial: complete with what it returned, pruned if `TrialReporter` stopped it, or failed. The same command goes
on with its study, by `n_trials` more.

Hydra imports all modules of this namespace whenever it starts, so Optuna is imported only where it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pfseg.errors import ConfigError, JobError
from pfseg.files import write_atomic
from pfseg.launch.sweep import stopped
from pfseg.tracking.optuna import PRUNED, TRIAL

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """See conf/hydra/sweeper/optuna_study.yaml for each setting."""

    def __init__(
        self,
        study_name: str | None,
        storage: str | None,
        direction: str,
        n_trials: int,
        n_jobs: int,
        sampler: Mapping[str, Any],
        params: Mapping[str, str],
    ) -> None:
        self._study_name, self._storage, self._direction = study_name, storage, direction
        self._n_trials, self._n_jobs, self._sampler = n_trials, n_jobs, sampler
        self._params = dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over, and make the launcher.

        Raises:
            ConfigError: Optuna isn't installed, or a pruner has no storage to go by.
        """
        if find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=optuna_study needs Optuna: pip install 'pfseg[sweep]'")
        if config.get("pruner") and (self._storage is None or self._study_name is None):
            raise ConfigError(
                "pruner is set, but the study is kept in memory, where its jobs can't report: set "
                "hydra.sweeper.storage=sqlite:///<file>.db and hydra.sweeper.study_name, or pruner=null"
            )
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials, `n_jobs` at a time.

        Args:
            arguments: overrides of the command line; they take the place of `params` of the same key.

        Raises:
            JobError: the sweep was stopped, or no trial of the study is complete.
        """
        import optuna

        assert self.config is not None and self.launcher is not None
        space, fixed = self._space(arguments)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=self._study_name,
            storage=self._storage,
            sampler=instantiate(self._sampler),
            direction=self._direction,
            load_if_exists=True,
        )
        for first in range(0, self._n_trials, self._n_jobs):
            trials = [study.ask(space) for _ in range(min(self._n_jobs, self._n_trials - first))]
            batch = [[*fixed, *_overrides(trial)] for trial in trials]
            if first == 0:
                self.validate_batch_is_legal(batch)
            returned = self.launcher.launch(batch, initial_job_idx=first)
            for trial, job in zip(trials, returned, strict=True):
                _tell(study, trial, job)
            if stopped(folder) is not None:
                raise JobError("the sweep was stopped")
        if not any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
            raise JobError(f"no trial of the study {study.study_name} is complete")
        best = {"name": "optuna", "best_params": study.best_params, "best_value": study.best_value}
        write_atomic(folder / "optimization_results.yaml", yaml.safe_dump(best, sort_keys=False))
        _log.info("best of the study: %s with %s", study.best_value, study.best_params)

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
        """What is searched, by setting, and the overrides that all jobs share."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        searched = [f"{key}={value}" for key, value in self._params.items()]
        overrides: dict[str, Override] = {}
        for override in parser.parse_overrides([*searched, *arguments]):
            overrides[override.get_key_element()] = override
        space = {key: _distribution(each) for key, each in overrides.items() if each.is_sweep_override()}
        return space, [str(each.input_line) for key, each in overrides.items() if key not in space]


def _distribution(override: Override) -> BaseDistribution:
    """What Hydra's choice(), range() and interval() mean to Optuna; tag(log, ...) makes the scale logarithmic."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        if isinstance(sweep.start, int) and isinstance(sweep.end, int):
            return IntDistribution(sweep.start, sweep.end, log=log)
        return FloatDistribution(sweep.start, sweep.end, log=log)
    values: list[Any] = [Transformer.encode(value) for value in override.sweep_iterator()]
    if isinstance(sweep, RangeSweep) and not sweep.shuffle:
        if all(isinstance(value, int) for value in values):
            return IntDistribution(min(values), max(values), step=abs(sweep.step))
        return FloatDistribution(min(values), max(values), step=abs(sweep.step))
    return CategoricalDistribution(values)


def _overrides(trial: optuna.Trial) -> list[str]:
    """The trial's settings, and a variable by which its job knows it."""
    return [*(f"{key}={value}" for key, value in trial.params.items()), f"+hydra.job.env_set.{TRIAL}={trial._trial_id}"]


def _tell(study: optuna.Study, trial: optuna.Trial, job: JobReturn) -> None:
    """Tell the study what came of a trial."""
    from optuna.trial import TrialState

    try:
        value = float(job.return_value)
    except Exception:  # what the job raised; it was shown when it did
        value = math.nan
    attributes = study.get_trials(deepcopy=False)[trial.number].user_attrs
    if PRUNED in attributes:
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)
