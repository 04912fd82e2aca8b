"""The job script, planning within an allocation, and a real SLURM on this machine (`pytest -m system`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from data.fakes import tif
from rasterio.transform import from_origin
from runs import ENVIRONMENT, ROOT, TINY, rows
from stand_in import settings
from tiny_network import make_checkpoint

from pfseg.config.run_settings import Slurm
from pfseg.devices import plan_nodes, plan_ranks
from pfseg.errors import ConfigError, JobError
from pfseg.launch.slurm import submit, write_script

in_slurm = pytest.mark.system("slurmctld", "slurmd", "munged", "sbatch", root=True)
LAUNCH = Slurm(
    name="slurm", timeout=300.0, interface=None, nodes=2, time=90, partition="gpu", account=None, cpus_per_task=8,
    memory="64G", options=["--mail-type=END"], setup=["date"], submit=False,
)  # fmt: skip


def configured(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"job": "train", "name": "roads", "gpus": 4, "ranks": 8, "precision": "fp32", "launch": LAUNCH, **changes}
    )


def test_the_script_asks_for_what_the_job_needs(tmp_path: Path) -> None:
    path = write_script(tmp_path / "a run", configured(), LAUNCH, ["seed=3", "launch=slurm", "launch.nodes=2"])
    lines = path.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert f"--output='{tmp_path}/a run/slurm-%j.log'" in options
    assert set(options) >= {
        *("--job-name=roads", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8"),
        *("--mem=64G", "--time=90", "--partition=gpu", "--signal=B:USR1@120", "--mail-type=END"),
    }
    assert not any("account" in option for option in options)
    assert "date" in lines
    assert lines[-1].endswith(f" seed=3 launch=mpi launch.timeout=300.0 launch.interface=null "
                              f"'hydra.run.dir={tmp_path}/a run'")  # fmt: skip
    assert any(line.endswith(f"'resume={tmp_path}/a run'") for line in lines)
    subprocess.run(["bash", "-n", path], check=True)


def test_a_script_for_maps_lies_beside_them_and_does_the_same_again(tmp_path: Path) -> None:
    path = write_script(tmp_path, configured(job="predict"), LAUNCH, ["input=a b.tif", "launch=slurm", "ranks=8"])
    text = path.read_text()
    assert path == tmp_path / "job.sh" and "\n#SBATCH --job-name=predict\n" in text
    assert text.endswith(" -m pfseg predict 'input=a b.tif' ranks=8 launch=mpi launch.timeout=300.0 "
                         "launch.interface=null\n")  # fmt: skip
    assert "resume=" not in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"gpus": "auto"},
            r"^gpus=auto can't be known before SLURM starts the job: add gpus=<GPUs per node>, or gpus=0",
        ),
        ({"ranks": 3}, r"^ranks=3 is no multiple of launch\.nodes=2"),
    ],
)
def test_what_a_script_cannot_ask_for(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_ranks(configured(**changes))


def test_ranks_of_a_script_need_no_gpus_here() -> None:
    assert plan_ranks(configured(ranks="auto")) == (8, [])


def test_within_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert plan_ranks(settings(ranks="auto")) == (4, [])
    nodes = plan_nodes(settings(ranks="auto"))
    assert (nodes.several, nodes.per_node) == (True, 2)
    with pytest.raises(ConfigError, match=r"^one rank within .* of 4 tasks .*: add ranks=4, or ask .*--ntasks=1\)$"):
        plan_ranks(settings())
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: ["0", "1", "2", "3"])
    assert plan_ranks(settings(gpus="auto", ranks="auto"))[0] == 8


def test_only_the_first_process_of_srun_acts(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, env=ENVIRONMENT | {"SLURM_PROCID": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "run").exists()


def test_a_missing_sbatch_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match=r"^sbatch not found: run `sbatch \S+job\.sh` on a host of the cluster"):
        submit(tmp_path / "job.sh")


CONF = """ClusterName=test
SlurmctldHost={host}
SlurmctldPort=16917
SlurmdPort=16918
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MailProg=/bin/true
ReturnToService=2
NodeName={host} CPUs=2
PartitionName=all Nodes=ALL Default=YES OverSubscribe=FORCE:4
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM of one node; gives the environment of its users."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=folder))
    environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {"socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
    munge = ["munged", "--foreground", "--force", *(f"--{key}={folder}/munge.{name}" for key, name in files.items())]
    host = socket.gethostname()
    started = []
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(1)
    yield environment
    subprocess.run(["scancel", "--full", f"--nodelist={host}"], env=environment, capture_output=True)
    for process in reversed(started):
        process.terminate()
        process.wait()


@pytest.mark.slow
@in_slurm
def test_a_job_is_submitted_told_to_save_and_submitted_again(cluster: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [
        "ranks=2",
        "batch_size=1",
        "trainer.max_epochs=6",
        "trainer.val_every=3",
        "launch=slurm",
        "launch.submit=true",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *options, f"hydra.run.dir={folder}"]
    told = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith("Submitted batch job "), told
    job = told.split()[-1]
    wait_for(lambda: len(rows(folder, "train")) > 1)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=cluster, check=True)
    wait_for(lambda: not queued(cluster))
    assert "stopped at step " in (folder / f"slurm-{job}.log").read_text()
    subprocess.run(["sbatch", str(folder / "job.sh")], env=cluster, check=True, capture_output=True)
    wait_for(lambda: not queued(cluster))
    assert [row["step"] for row in rows(folder, "train")] == list(range(1, 13))
    assert rows(folder, "start")[0]["ranks"] == 2


@pytest.mark.slow
@in_slurm
def test_an_allocation_has_a_rank_per_task(cluster: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["ranks=auto", "batch_size=1", "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
    command = ["salloc", "--ntasks=2", sys.executable, str(ROOT / "train.py"), *TINY, *options]
    done = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rows(folder, "start")[0]["ranks"] == 2
    assert rows(folder, "end")[-1]["status"] == "done"


@pytest.mark.slow
@in_slurm
def test_maps_by_two_ranks_of_a_job_that_is_told_to_stop(cluster: dict[str, str], tmp_path: Path) -> None:
    """Submitted again, it goes on."""
    make_checkpoint(tmp_path / "colour.safetensors")
    pixels = np.random.default_rng(0).integers(0, 80, (4000, 300, 3)) * 3 + np.arange(3)  # no two channels alike
    place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
    tif(tmp_path / "in" / "a.tif", np.moveaxis(pixels, 2, 0).astype(np.uint8), **place)
    given = [f"checkpoint={tmp_path / 'colour.safetensors'}", "trust=true", f"input={tmp_path / 'in'}", "window=64"]
    given += [f"output={tmp_path / 'out'}", "gpus=0", "ranks=2", "launch=slurm", "launch.submit=true", "flips=d4"]
    environment = cluster | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "pfseg", "predict", *given]
    told = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert told.startswith("Submitted batch job "), told
    job, out = told.split()[-1], tmp_path / "out"
    wait_for(lambda: len([*out.rglob("*.npz")]) > 2)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=cluster, check=True)
    wait_for(lambda: not queued(cluster))
    log = (out / f"slurm-{job}.log").read_text()
    assert "stopped after 0 of 1 images; the same command goes on from there" in log and not (out / "a.tif").exists()
    subprocess.run(["sbatch", str(out / "job.sh")], env=environment, check=True, capture_output=True)
    wait_for(lambda: not queued(cluster))
    with rasterio.open(out / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), pixels.argmax(2))


def queued(environment: dict[str, str]) -> str:
    return subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True).stdout


def wait_for(condition: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
