"""The loggers that the group `logger` of a configuration chooses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfseg.tracking.records import Sink


def make_loggers(folder: Path, config: dict[str, Any], console: Sink, group: str | None) -> Iterator[Sink]:
    """Make the chosen loggers one by one; each package is imported only where it is asked for.

    Args:
        folder: the run folder.
        config: the resolved configuration.
        console: told where the run can be seen.
        group: what the runs of one sweep share.
    """
    if "tensorboard" in config["logger"]:
        from pfseg.tracking.tensorboard import TensorBoardLogger

        yield TensorBoardLogger(folder, config, console)
    if "wandb" in config["logger"]:
        from pfseg.tracking.wandb import WandbLogger

        yield WandbLogger(folder, config, console, group=group)
