"""Which GPUs and hosts a job may use and how many ranks it has (no Jittor, no CUDA call)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pfseg.errors import ConfigError

Gpus = Literal["auto"] | int | list[int]


class JobSettings(Protocol):
    """What the settings of a job say about devices of each host, ranks, and how these are started."""

    @property
    def gpus(self) -> Gpus: ...  # noqa: D102
    @property
    def ranks(self) -> Literal["auto"] | int: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def launch(self) -> object: ...  # noqa: D102


@dataclass(frozen=True)
class Nodes:
    """Where the ranks of a job run.

    Attributes:
        hosts: ranks by host, this host first; empty for this host alone and within SLURM, which mpirun asks itself.
        several: whether there are other hosts.
        per_node: ranks on each SLURM node, where they divide evenly.
        interface: network interface or subnet that the ranks talk over; None leaves the choice to MPI.
    """

    hosts: dict[str, int] = field(default_factory=dict)
    several: bool = False
    per_node: int | None = None
    interface: str | None = None


def rank() -> int:
    """This process's rank, 0 without MPI."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def world_size() -> int:
    """Number of ranks, 1 without MPI."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them (no CUDA call is made)."""
    if not os.path.exists("/dev/nvidiactl"):
        return []
    present = sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in present]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def choose_gpus(gpus: Gpus) -> list[str]:
    """Names of this host's GPUs for `CUDA_VISIBLE_DEVICES`, none for the CPU; ConfigError for more than are visible."""
    wanted = _positions(gpus)
    visible = visible_gpus()
    if wanted is None:
        return visible
    if any(index >= len(visible) for index in wanted):
        there = f"{len(visible)} ({', '.join(visible)})" if visible else "none"
        raise ConfigError(
            f"gpus={gpus} asks for more GPUs than are visible on {socket.gethostname()}: {there}; "
            "use gpus=auto, or gpus=0 for the CPU"
        )
    return [visible[index] for index in wanted]


def plan_ranks(settings: JobSettings) -> tuple[int, list[str]]:
    """Work out how many ranks a job has on all hosts, and the names of the GPUs that those of this host share.

    `ranks=auto` means one per GPU used, on a CPU one, or one per SLURM task.

    Raises ConfigError for more GPUs than are visible, a precision that needs one, and hosts and ranks that don't fit.
    """
    ranks, kind = settings.ranks, getattr(settings.launch, "name", None)
    if kind == "slurm":
        return _plan_script(settings.gpus, ranks, getattr(settings.launch, "nodes", 1)), []
    chosen = choose_gpus(settings.gpus)
    check_precision(settings.precision, gpu=bool(chosen))
    if hosts := getattr(settings.launch, "hosts", None):
        total = sum(_parse_hosts(hosts, max(1, len(chosen))).values())
        if ranks not in ("auto", total):
            raise ConfigError(f"ranks={ranks} but launch.hosts gives {total}: leave out ranks")
        return total, chosen
    if ranks == "auto":
        return (len(chosen) * _slurm("JOB_NUM_NODES") if chosen else _slurm("NTASKS")), chosen
    if kind == "mpi" and ranks == 1 < (tasks := _slurm("NTASKS")):
        raise ConfigError(
            f"one rank within a SLURM allocation of {tasks} tasks would leave the others idle: "
            f"add ranks={tasks}, or ask SLURM for one task (--ntasks=1)"
        )
    return ranks, chosen


def check_precision(precision: str, gpu: bool) -> None:
    """Raise ConfigError for a precision that needs a GPU where there is none."""
    if not gpu and precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision} needs a GPU: use precision=fp32 or bf16 on a CPU")


def plan_nodes(settings: JobSettings) -> Nodes:
    """Work out on which hosts the ranks of `plan_ranks` run; raises ConfigError for a wrong `launch.hosts`."""
    interface = getattr(settings.launch, "interface", None)
    if not (given := getattr(settings.launch, "hosts", None)):
        nodes, ranks = _slurm("JOB_NUM_NODES"), plan_ranks(settings)[0]
        per_node = ranks // nodes if nodes > 1 and ranks % nodes == 0 else None
        return Nodes(several=nodes > 1, per_node=per_node, interface=interface)
    hosts = _parse_hosts(given, max(1, len(choose_gpus(settings.gpus))))
    return Nodes(hosts, several=len(hosts) > 1, interface=interface)


def other_slurm_process() -> bool:
    """Tell whether `srun` started this process beside a first one, which alone has to start the job."""
    return _slurm("PROCID", default=0) > 0


def _positions(gpus: Gpus) -> list[int] | None:
    if gpus == "auto":
        return None
    return list(range(gpus)) if isinstance(gpus, int) else list(map(int, gpus))


def _plan_script(gpus: Gpus, ranks: Literal["auto"] | int, nodes: int) -> int:
    """Ranks of a job that SLURM will start, on nodes whose GPUs can't be seen from here."""
    per_node = _positions(gpus)
    if per_node is None:
        raise ConfigError("gpus=auto can't be known before SLURM starts the job: add gpus=<GPUs per node>, or gpus=0")
    if ranks == "auto":
        return nodes * max(1, len(per_node))
    if ranks % nodes:
        raise ConfigError(f"ranks={ranks} is no multiple of launch.nodes={nodes}: SLURM gives each node as many tasks")
    return ranks


def _parse_hosts(hosts: list[str], default: int) -> dict[str, int]:
    """Ranks by host of `launch.hosts`: `name:ranks`, or `name` for as many as this host has GPUs."""
    found: dict[str, int] = {}
    for text in hosts:
        name, _, number = text.partition(":")
        if not name or (number and (not number.isdigit() or int(number) < 1)) or text.endswith(":"):
            raise ConfigError(f"launch.hosts has {text!r}: expected name or name:ranks, such as [node1:4,node2:4]")
        if name in found:
            raise ConfigError(f"launch.hosts names {name} twice: give its ranks in one item, such as {name}:4")
        found[name] = int(number or default)
    first = next(iter(found))
    if not _is_here(first):
        raise ConfigError(
            f"launch.hosts begins with {first}, which is not this host ({socket.gethostname()}): put this host first, "
            "because rank 0 writes the run folder here"
        )
    return found


def _is_here(host: str) -> bool:
    """Whether a name or address is one of this host's."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConfigError(f"launch.hosts has {host}, whose address can't be found ({error.strerror})") from error
    for family, kind, _, _, address in addresses:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)  # only an own address can be bound
                return True
            except OSError:
                continue
    return False


def _slurm(name: str, default: int = 1) -> int:
    return int(os.environ.get(f"SLURM_{name}", default))
