"""A job script for SLURM that starts a command again inside an allocation, and goes on when it is submitted anew."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pfseg.config.commands import Predict
from pfseg.config.run_settings import Slurm
from pfseg.config.schema import Evaluate, Train
from pfseg.errors import JobError
from pfseg.files import shown, write_atomic

SAVING_SECONDS = 120  # before the end of the time limit, for a step, a checkpoint and the way out


def write_script(folder: Path, settings: Train | Evaluate | Predict, launch: Slurm, overrides: Sequence[str]) -> Path:
    """Write `job.sh` into the folder of a run or of maps, without the overrides of `launch`.

    Returns its path; raises WriteError.
    """
    folder = folder.absolute()
    started = Path(sys.argv[0]).absolute()  # train.py of a checkout, or the installed command
    command = [sys.executable, *([str(started)] if started.stem == settings.job else ["-m", "pfseg", settings.job])]
    kept = [text for text in overrides if text.lstrip("+~").partition("=")[0].partition(".")[0] != "launch"]
    inside = {"timeout": launch.timeout, "interface": launch.interface}
    kept += ["launch=mpi", *(f"launch.{key}={'null' if value is None else value}" for key, value in inside.items())]
    kept += [] if settings.job == "predict" else [f"hydra.run.dir={folder}"]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(folder, settings, launch)),
        "",
        *launch.setup,
        f"cd {shlex.quote(str(Path.cwd()))} || exit",
    ]
    if settings.job == "train":
        lines += [
            f"if [ -e {shlex.quote(str(folder / 'checkpoints' / 'last.safetensors'))} ]; then # submitted again: go on",
            f"  exec {shlex.join([*command, f'resume={folder}'])}",
            "fi",
        ]
    path = folder / "job.sh"
    write_atomic(path, "\n".join([*lines, f"exec {shlex.join([*command, *kept])}", ""]))
    return path


def submit(script: Path) -> str:
    """Hand a script to sbatch and return its answer; raises JobError if sbatch is missing or refuses."""
    if shutil.which("sbatch") is None:
        raise JobError(f"sbatch not found: run `sbatch {shown(script)}` on a host of the cluster (launch.submit=true)")
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    if done.returncode:
        raise JobError(f"sbatch refused {shown(script)}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _options(folder: Path, settings: Train | Evaluate | Predict, launch: Slurm) -> list[str]:
    gpus, ranks = settings.gpus, settings.ranks
    assert isinstance(ranks, int) and gpus != "auto", "worked out by the check of the settings"
    wanted = {
        "job-name": settings.name if settings.job == "train" else settings.job,
        "output": folder / "slurm-%j.log",
        "nodes": launch.nodes,
        "ntasks-per-node": ranks // launch.nodes,
        "gpus-per-node": gpus if isinstance(gpus, int) else max(gpus) + 1,
        "cpus-per-task": launch.cpus_per_task,
        "mem": launch.memory,
        "time": launch.time,
        "partition": launch.partition,
        "account": launch.account,
        "signal": f"B:USR1@{SAVING_SECONDS}",  # to the script, which has become the driver
    }
    return [*(f"--{key}={shlex.quote(str(value))}" for key, value in wanted.items() if value), *launch.options]
