"""The loggers that the group `logger` of a configuration chooses, built-in ones and a user's own.

A logger is a file `conf/logger/<name>.yaml` and a class derived from `pfseg.tracking.records.Sink`, as CONTRIBUTING.md
shows. It lives in the command's own process, so that a killed rank loses no row. One that fails is left out from then
on, with a warning; the job goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfseg.config.targets import call
from pfseg.errors import ConfigError
from pfseg.tracking.records import Sink

_BUILT_IN = {"wandb": "pfseg.tracking.wandb.WandbLogger", "tensorboard": "pfseg.tracking.tensorboard.TensorBoardLogger"}


@dataclass(frozen=True)
class RunContext:
    """What a logger is told of the run."""

    folder: Path  # the run folder
    settings: Mapping[str, Any]  # the resolved configuration as plain values, as `resolved.yaml` holds it
    console: Sink  # takes messages for the user, such as where the run can be seen
    group: str | None = None  # what the runs of one sweep share; None for a single run


def make_loggers(run: RunContext) -> Iterator[Sink]:
    """Create the loggers of `run.settings["logger"]` one by one; their packages are imported only here.

    Raises:
        ConfigError: a class does not exist, or its constructor rejects its settings.
    """
    for name, values in (run.settings.get("logger") or {}).items():
        if values is None:
            continue
        target = values.get("_target_") or _BUILT_IN.get(name)
        if target is None:
            raise ConfigError(f"logger.{name} has no _target_: name its class as package.module.Class")
        settings = {key: value for key, value in values.items() if key != "_target_"}
        logger = call(target, settings, run, group=f"logger.{name}")
        if not isinstance(logger, Sink):
            raise ConfigError(f"logger.{name}._target_={target} must derive from pfseg.tracking.records.Sink")
        yield logger
