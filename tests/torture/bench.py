"""The commands that are tortured: how each is started and continued, and what must hold after its end.

No process, shared memory or temporary file is left; every checkpoint and row is whole; the exit code and the one-line
error fit; and the same command, or a resumed training, comes to the result of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from runs import rows

from pfseg.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).parent / "project"
PATIENCE = 300.0  # seconds after which a command counts as hung
# What stays: folders of a user's, locks in them, and a socket of W&B's service where that was killed.
LEFT = re.compile(r"pfseg-(locks|mpi)-\d+(/.*\.lock)?$|wandb_symon-[-\d]+\.sock$")
TRAINING = (
    "gpus=0 ranks=1 logger=none model=thin loss=ce batch_size=2 dataset.crop_size=64 dataset.size=64 "
    "dataset.train_images=8 dataset.val_images=2 schedule.warmup_steps=0 trainer.max_epochs=2 trainer.val_every=1 "
    "trainer.bn_batches=0 trainer.num_samples=1 trainer.log_every=1 trainer.save_every=1 trainer.workers=1"
).split()
TRIALS = 2


@dataclass
class Work:
    """A command that is repeated.

    Attributes:
        arguments: those of the command whose output is in a folder.
        result: what must be the same as of an undisturbed one.
        resumes: whether it is a training, which goes on by `resume`, not by the same command.
        seconds: that an undisturbed one took.
        expected: its result.
    """

    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    resumes: bool = False
    seconds: float = 0.0
    expected: Any = None

    def again(self, folder: Path) -> list[str]:
        """Arguments that go on with what is in the folder."""
        if self.resumes and (folder / "checkpoints" / "last.safetensors").exists():
            return ["train", f"resume={folder}"]
        if self.resumes:
            shutil.rmtree(folder, ignore_errors=True)
        return self.arguments(folder)


@dataclass
class Round:
    """What happened in a round, and what did not hold."""

    number: int
    said: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    kills: int = 0


def train(folder: Path) -> list[str]:
    return ["train", *TRAINING, f"hydra.run.dir={folder}"]


def losses(folder: Path) -> list[float]:
    """The loss of each step; of steps that were repeated the last one."""
    return list({row["step"]: round(row["train/loss"], 5) for row in rows(folder, "train")}.values())


def sweep(folder: Path) -> list[str]:
    study = ["hydra/sweeper=optuna_study", f"hydra.sweeper.storage=sqlite:///{folder}.db", f"hydra.sweep.dir={folder}"]
    study += ["hydra.sweeper.study_name=rates", "hydra.sweeper.direction=maximize", f"hydra.sweeper.n_trials={TRIALS}"]
    return ["train", "-m", *study, *TRAINING, "trainer.max_epochs=1", "optimizer.lr=interval(0.001, 0.01)"]


def study(folder: Path) -> Any:
    """Whether the study is whole and has at least as many finished trials as one command makes."""
    with closing(sqlite3.connect(f"{folder}.db")) as base:
        (whole,) = base.execute("pragma integrity_check").fetchone()
        (done,) = base.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()
    return whole, done >= TRIALS, (folder / "multirun.csv").exists()


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*.png") if path.is_file())
    contents = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest() if contents else "nothing"


class Bench:
    """A folder of its own for the commands of one lane, with what undisturbed ones came to."""

    def __init__(self, folder: Path, only: Collection[str] = ()) -> None:
        shutil.copytree(PROJECT, folder, dirs_exist_ok=True)
        self.folder, self.references, self.works = folder, folder, dict[str, Work]()
        images = folder / "town" / "train"
        random = np.random.default_rng(0)
        for kind, shape, high in (("images", (96, 96, 3), 256), ("masks", (96, 96), 2)):
            (images / kind).mkdir(parents=True)
            for number in range(6):
                cv2.imwrite(str(images / kind / f"{number}.png"), random.integers(0, high, shape, np.uint8))
        shutil.copytree(images, folder / "town" / "val")
        classes = "dataset.classes=[{name: a, color: '000000'}, {name: b, color: 'FFFFFF'}]"
        town = ["dataset=folder", f"src={folder / 'town'}", classes, "dataset.prepare.size=32", "workers=2"]
        run, one_cpu = [f"checkpoint={self.reference('train')}", "trust=true"], ["gpus=0", "ranks=1", "logger=none"]
        self.works = {
            "train": Work(train, losses, resumes=True),
            "train on two ranks": Work(lambda f: [*train(f), "ranks=2"], losses, resumes=True),
            "train with wandb": Work(lambda f: [*train(f), "logger=wandb"], losses, resumes=True),
            "evaluate": Work(
                lambda f: ["evaluate", *run, f"hydra.run.dir={f}", *one_cpu],
                lambda f: json.loads((f / "result.json").read_text()),
            ),
            "predict": Work(
                lambda f: ["predict", *run, f"input={images / 'images'}", f"output={f}", "window=64"],
                digest,
            ),
            "prepare": Work(lambda f: ["prepare", *town, f"out={f}"], digest),
            "sweep": Work(sweep, study),
        }
        for name in only or self.works:
            work = self.works[name]
            began = time.monotonic()
            code, text = self.finish(self.start(work.arguments(self.reference(name)), name))
            assert code == 0, text
            work.seconds, work.expected = time.monotonic() - began, work.result(self.reference(name))
            print(f"{name}: {work.seconds:.0f} s", flush=True)

    def reference(self, name: str) -> Path:
        """The folder of an undisturbed command."""
        return self.references / f"expected-{name.replace(' ', '-')}"

    def take_lane(self, lane: int) -> None:
        """Work in a folder, and with shared memory, of this lane's own."""
        self.folder = self.folder / f"lane{lane}"
        shutil.copytree(PROJECT, self.folder)

    @property
    def temporary(self) -> Path:
        """Where commands have their temporary files."""
        return self.folder / "tmp"

    def start(
        self,
        arguments: list[str],
        mark: object,
        variables: Mapping[str, str] | None = None,
        output: Any = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command whose processes are found again by this lane's folder and a mark."""
        self.temporary.mkdir(exist_ok=True)
        environment = os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        environment["PFSEG_MARK"] = f"{self.folder} {mark}"
        environment |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", **(variables or {})}
        command = [sys.executable, "-m", "pfseg", *arguments]
        pipes = {"stdout": output, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True, **pipes)

    def processes(self, mark: object) -> list[psutil.Process]:
        """Those that were started with a mark, and theirs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                given = process.environ().get("PFSEG_MARK")
                if given == f"{self.folder} {mark}" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for a command; returns its exit code and what it said."""
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            return -99, f"hung for {PATIENCE:.0f} s: {text}"
        return process.returncode, text

    def complete(self, work: Work, folder: Path, result: Round) -> None:
        """Continue a command that was disturbed, to the end, and compare its result."""
        began = time.monotonic()
        code, text = self.finish(self.start(work.again(folder), result.number))
        work.seconds = time.monotonic() - began  # how busy the machine is now
        if code:
            result.faults.append(f"it can't go on, exit code {code}: {text[-2000:]}")
        elif (got := work.result(folder)) != work.expected:
            result.faults.append(f"the result differs: {got}, expected {work.expected}")

    def check(self, folder: Path, result: Round, code: int, codes: set[int], text: str) -> None:
        """Add what does not hold after the end of a command."""
        faults = result.faults
        if code not in codes:
            faults.append(f"exit code {code}: {text[-1000:]}")
        if "Traceback" in text:
            faults.append(f"a traceback: {text[-3000:]}")
        end = time.monotonic() + 20
        while (left := self.processes(result.number)) and time.monotonic() < end:
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.Error):
                faults.append(f"a process is left: {' '.join(process.cmdline())[:200]}")
                process.kill()
        killed = any("SIGKILL" in text for text in result.said)
        for path in Path("/dev/shm").iterdir():
            if not (killed and path.name.startswith("sm_segment.")):  # Open MPI's, see docs/robustness.md
                faults.append(f"left in /dev/shm: {path.name}")
            path.unlink()
        temporary = [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")]
        if code != -signal.SIGKILL and (strange := [name for name in temporary if not LEFT.match(name)]):
            faults.append(f"left in TMPDIR: {', '.join(strange[:5])}")
        if not self.temporary.is_mount():
            shutil.rmtree(self.temporary, ignore_errors=True)
        for path in folder.rglob("checkpoints/*.safetensors"):
            try:
                load_checkpoint(path)
            except Exception as error:
                faults.append(f"checkpoint: {error}")
        for records in folder.rglob("metrics.jsonl"):
            for line in records.read_bytes().split(b"\n")[:-1]:
                try:
                    json.loads(line)
                except ValueError:
                    faults.append(f"a torn row: {line[:100]!r}")
