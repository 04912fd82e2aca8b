"""Schemas of the group `launch`; see `pfseg.config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pfseg.config.validate import Limit


@dataclass
class Mpi:
    """mpirun, on this host or several; see conf/launch/mpi.yaml for each key."""

    name: str
    timeout: Annotated[float, Limit(above=0)] | None  # seconds
    hosts: list[str] | None
    interface: str | None


@dataclass
class Slurm:
    """A job script for SLURM; see conf/launch/slurm.yaml for each key."""

    name: str
    timeout: Annotated[float, Limit(above=0)] | None  # seconds
    interface: str | None
    nodes: Annotated[int, Limit(least=1)]
    time: Annotated[int, Limit(least=1)] | None  # minutes
    partition: str | None
    account: str | None
    cpus_per_task: Annotated[int, Limit(least=1)] | None
    memory: str | None
    options: list[str]
    setup: list[str]
    submit: bool
