"""Sweeps by Optuna: a sweeper of Hydra that asks a study for the settings of each job and tells it what came of them.

A job is a trial: complete with what it returned, pruned if `TrialReporter` stopped it, or failed. The same command goes
on with its study, by `n_trials` more.

Hydra imports all modules of this namespace whenever it starts: what takes time is imported only where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
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

from pfseg.errors import ConfigError, JobError, MissingPackage
from pfseg.files import write_atomic
from pfseg.tracking.optuna import PRUNED, TRIAL

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


class OptunaSweeper(Sweeper):
    """See conf/hydra/sweeper/optuna_study.yaml for each setting; `study` are arguments of `optuna.create_study`."""

    def __init__(
        self, n_trials: int, n_jobs: int, sampler: Mapping[str, Any], params: Mapping[str, str], **study: str | None
    ) -> None:
        self._n_trials, self._n_jobs, self._sampler, self._params = n_trials, n_jobs, sampler, params
        self._study = study

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over; raises ConfigError without Optuna, or for a pruner without storage."""
        if find_spec("optuna") is None:
            raise MissingPackage("hydra/sweeper=optuna_study", "optuna", "sweep")
        if config.get("pruner") and None in (self._study.get("storage"), self._study.get("study_name")):
            raise ConfigError(
                "pruner is set, but the study is kept in memory, where its jobs can't report: set "
                "hydra.sweeper.storage=sqlite:///<file>.db and hydra.sweeper.study_name, or pruner=null"
            )
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials, `n_jobs` at a time, `arguments` before `params`; raises JobError if stopped or all failed."""
        import optuna

        from pfseg.launch.sweep import stopped

        assert self.config is not None and self.launcher is not None
        space, fixed = self._space(arguments)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=instantiate(self._sampler), load_if_exists=True, **self._study)
        for first in range(0, self._n_trials, self._n_jobs):
            trials = [study.ask(space) for _ in range(min(self._n_jobs, self._n_trials - first))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            for overrides, trial in zip(jobs, trials, strict=True):
                overrides.append(f"+hydra.job.env_set.{TRIAL}={trial._trial_id}")  # by which the job knows its trial
            for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=first), strict=True):
                _tell(study, trial, job)
            if stopped(folder) is not None:
                raise JobError("the sweep was stopped")
        states = {trial.state.name for trial in study.get_trials(deepcopy=False)}
        if "COMPLETE" in states:
            best = {"name": "optuna", "best_params": study.best_params, "best_value": study.best_value}
            write_atomic(folder / "optimization_results.yaml", yaml.safe_dump(best, sort_keys=False))
        elif "PRUNED" not in states:
            raise JobError(f"each trial of the study {study.study_name} failed")

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
        """What is searched, by setting, and the overrides that all jobs share."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        searched = [f"{key}={value}" for key, value in self._params.items()]
        overrides = {each.get_key_element(): each for each in parser.parse_overrides([*searched, *arguments])}
        space = {key: _distribution(each) for key, each in overrides.items() if each.is_sweep_override()}
        return space, [str(each.input_line) for key, each in overrides.items() if key not in space]


def _distribution(override: Override) -> BaseDistribution:
    """What Hydra's choice(), range() and interval() mean to Optuna; tag(log, ...) makes the scale logarithmic."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    options: dict[str, Any]
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high, options = sweep.start, sweep.end, {"log": "log" in sweep.tags}
    else:
        values: list[Any] = [Transformer.encode(value) for value in override.sweep_iterator()]
        if not isinstance(sweep, RangeSweep) or sweep.shuffle:
            return CategoricalDistribution(values)
        low, high, options = min(values), max(values), {"step": abs(sweep.step)}
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, **options) if whole else FloatDistribution(low, high, **options)


def _tell(study: optuna.Study, trial: optuna.Trial, job: JobReturn) -> None:
    from optuna.trial import TrialState

    value = math.nan
    with suppress(Exception):  # what the job raised; it was shown when it did
        value = float(job.return_value)
    if PRUNED in study.get_trials(deepcopy=False)[trial.number].user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)
