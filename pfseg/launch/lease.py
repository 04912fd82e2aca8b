"""What a command holds for itself: its folder, and the GPUs or cores of a sweep's jobs, which wait for them here.

Each GPU and core of this machine has a lock file, which the job's driver holds until it ends, however it ends. One
waiting job at a time collects locks, in the order of asking: a job that needs several is never overtaken for ever.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from pfseg.devices import JobSettings, plan_ranks, visible_gpus
from pfseg.errors import JobError
from pfseg.files import cannot_write, lock, shown

_LOOK_SECONDS = 0.2  # between looks at what has become free


@contextmanager
def lease(
    settings: JobSettings, launcher: Mapping[str, str | int | None], tell: Callable[[str], None]
) -> Iterator[None]:
    """Hold what a job uses, and leave it in the environment for the job's ranks.

    With GPUs these are the GPUs; `gpus=<number>` takes whichever are free first. Without, cores: all of them for jobs
    that run one by one, this job's part of them otherwise. Jobs that SLURM starts (by `launcher`, Hydra's group) have
    their devices from it and take none here. `tell` hears in one line what the job waits for.
    """
    if "slurm" in str(launcher.get("_target_", "")).lower():
        yield
        return
    ranks, gpus = plan_ranks(settings)
    cores = sorted(os.sched_getaffinity(0))
    visible = visible_gpus() if gpus else []
    share = len(cores) * len(gpus) // len(visible) if gpus else _share(launcher, ranks, len(cores))
    anyone = bool(gpus) and isinstance(settings.gpus, int)
    names = [f"gpu-{name}" for name in (visible if anyone else gpus)] if gpus else [f"core-{core}" for core in cores]
    count = len(gpus) if gpus else share
    with hold(names, count, tell) as held:
        given = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, share // ranks)))}
        if anyone:
            given["CUDA_VISIBLE_DEVICES"] = ",".join(name.removeprefix("gpu-") for name in held)
        before = {name: os.environ[name] for name in given if name in os.environ}
        os.environ.update(given)
        try:
            yield
        finally:
            for name in given:
                del os.environ[name]
            os.environ.update(before)


@contextmanager
def hold(names: Sequence[str], count: int, tell: Callable[[str], None]) -> Iterator[list[str]]:
    """Hold the locks of the first `count` of the names that are free, and yield these; `tell` hears of a wait."""
    folder = Path(tempfile.gettempdir()) / f"pfseg-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)

    tell_once = cache(lambda: tell(f"waiting for {count} of {', '.join(names)}, in use by other jobs"))

    def collect(names: Sequence[str], count: int, locks: ExitStack) -> set[str]:
        held: set[str] = set()
        while True:
            for name in names:
                with suppress(TimeoutError):  # another process has it
                    if len(held) < count and name not in held:
                        locks.enter_context(lock(folder / name.replace("/", "_"), wait=False))
                        held.add(name)
            if len(held) == count:
                return held
            tell_once()
            time.sleep(_LOOK_SECONDS)

    with ExitStack() as locks:
        with ExitStack() as turn:
            collect(["turn"], 1, turn)
            held = collect(names, count, locks)
        yield [name for name in names if name in held]


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Hold a run's or a sweep's folder for this command alone; raises JobError if another one works in it."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(folder / ".run", wait=False))
        except TimeoutError:
            raise JobError(
                f"{shown(folder)} is in use by another command: wait for its end, or choose another folder "
                "(config: hydra.run.dir, or hydra.sweep.dir)"
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from error
        yield


def _share(launcher: Mapping[str, str | int | None], ranks: int, cores: int) -> int:
    """Cores of one job on the CPU, by how many jobs the launcher runs at once."""
    target, threads = str(launcher.get("_target_", "")), os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        wanted = ranks * int(threads)
    elif "joblib" in target:
        jobs = int(launcher.get("n_jobs") or 1)
        wanted = cores // (jobs if jobs > 0 else max(1, cores + 1 + jobs))
    elif "submitit" in target:  # starts all jobs at once
        wanted = int(launcher.get("cpus_per_task") or ranks)
    else:
        wanted = cores
    return min(cores, max(ranks, wanted))
