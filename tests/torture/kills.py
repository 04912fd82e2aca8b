"""Signals at random moments to a real command and its processes, and what must hold afterwards.

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
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import psutil
from runs import TINY, rows

from pfseg.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0  # seconds after which a command counts as hung; operators may have to be compiled
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CODES = {0, 1, 129, 130, 143}
LEFT = re.compile(r"pfseg-(locks|mpi)-\d+(/.*\.lock)?$")  # folders of a user's, and locks in them, which stay
TRAINING = [*TINY, "trainer.workers=1", "dataset.train_images=8", "trainer.save_every=1", "launch.timeout=60"]


@dataclass
class Work:
    """A command that is repeated; `again` are the arguments that go on after a kill."""

    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    again: Callable[[Path], list[str]] | None = None
    seconds: float = 0.0  # of an undisturbed one
    expected: Any = field(default=None)


def losses(folder: Path) -> list[float]:
    """The loss of each step; of steps that were repeated the last one."""
    return list({row["step"]: round(row["train/loss"], 5) for row in rows(folder, "train")}.values())


def digest(folder: Path, pattern: str) -> str:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    contents = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest() if contents else "nothing"


def resumed(folder: Path) -> list[str]:
    if (folder / "checkpoints" / "last.safetensors").exists():
        return ["train", f"resume={folder}"]
    shutil.rmtree(folder, ignore_errors=True)
    return train(folder)


def train(folder: Path) -> list[str]:
    return ["train", *TRAINING, f"hydra.run.dir={folder}"]


class Rounds:
    """Rounds of kills in a folder, whose faults are collected."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kills, self.faults = folder, 0, list[str]()
        images = folder / "town" / "train"
        random = np.random.default_rng(0)
        for kind, shape, high in (("images", (96, 96, 3), 256), ("masks", (96, 96), 2)):
            (images / kind).mkdir(parents=True)
            for number in range(6):
                cv2.imwrite(str(images / kind / f"{number}.png"), random.integers(0, high, shape, np.uint8))
        shutil.copytree(images, folder / "town" / "val")
        classes = "dataset.classes=[{name: a, color: '000000'}, {name: b, color: 'FFFFFF'}]"
        town = ["dataset=folder", f"src={folder / 'town'}", classes, "dataset.prepare.size=32", "workers=2"]
        run = folder / "expected-train"
        one_cpu = ["gpus=0", "ranks=1", "logger=none"]
        self.works = {
            "train": Work(train, losses, resumed),
            "train on two ranks": Work(lambda f: [*train(f), "ranks=2"], losses, resumed),
            "evaluate": Work(
                lambda f: ["evaluate", f"checkpoint={run}", f"hydra.run.dir={f}", *one_cpu],
                lambda f: json.loads((f / "result.json").read_text()),
            ),
            "predict": Work(
                lambda f: ["predict", f"checkpoint={run}", f"input={images / 'images'}", f"output={f}", "window=64"],
                lambda f: digest(f, "*.png"),
            ),
            "prepare": Work(lambda f: ["prepare", *town, f"out={f}"], lambda f: digest(f, "*.png")),
        }
        for name, work in self.works.items():
            target = folder / f"expected-{name.replace(' ', '-')}"
            began = time.monotonic()
            code, text = self.finish(self.start(work.arguments(target), "expected"))
            assert code == 0, text
            work.seconds, work.expected = time.monotonic() - began, work.result(target)

    def start(self, arguments: list[str], mark: str) -> subprocess.Popen[str]:
        """Start a command whose processes carry a mark, with a folder of its own for temporary files."""
        temporary = self.folder / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        environment = os.environ | {"TMPDIR": str(temporary), "PFSEG_MARK": mark, "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
        command = [sys.executable, "-m", "pfseg", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True, **pipes)

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            return -99, f"hung for {PATIENCE:.0f} s: {text}"
        return process.returncode, text

    def run(self, seed: int) -> None:
        """One round: a command, one or two signals, the checks, and the command again."""
        random = Random(seed)
        name = random.choice(("train", "train", "train", "train on two ranks", "evaluate", "predict", "prepare"))
        work, folder = self.works[name], self.folder / str(seed)
        said = [f"round {seed}, {name}:"]
        process = self.start(work.arguments(folder), str(seed))
        codes = set(CODES)
        for pause in [random.uniform(0, 1.1 * work.seconds), random.uniform(0, 1)][: 1 + (random.random() < 0.2)]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
            number = random.choice(SIGNALS)
            target = random.choice(self.processes(process, str(seed)) or [process])
            with suppress(ProcessLookupError, psutil.Error):
                what = " ".join(psutil.Process(target.pid).cmdline()[:4])[-60:]
                os.kill(target.pid, number)
                self.kills += 1
                said.append(f"{number.name} to {'the command' if target.pid == process.pid else what}")
                codes |= {-number} if target.pid == process.pid else set()
        code, text = self.finish(process)
        faults = self.check(folder, str(seed), code, codes, text)
        began = time.monotonic()
        code, text = self.finish(self.start((work.again or work.arguments)(folder), str(seed)))
        work.seconds = min(work.seconds, max(3.0, time.monotonic() - began))  # the first one may have compiled
        if code:
            faults.append(f"it can't go on, exit code {code}: {text[-2000:]}")
        elif (result := work.result(folder)) != work.expected:
            faults.append(f"the result differs: {result}, expected {work.expected}")
        if faults:
            self.faults.append("\n  ".join([" ".join(said), *faults]))
        else:
            shutil.rmtree(folder)
        print(" ".join(said), "FAULTS" if faults else "survived", flush=True)

    def processes(self, process: subprocess.Popen[str], mark: str) -> list[Any]:
        """Each process of the command once by its kind, so that the many compilers or loaders don't outweigh others."""
        found: dict[str, Any] = {"command": process}
        for each in marked(mark):
            with suppress(psutil.Error):
                found[" ".join(each.cmdline()[:3])[-50:]] = each
        return list(found.values())

    def check(self, folder: Path, mark: str, code: int, codes: set[int], text: str) -> list[str]:
        """What does not hold after the end of a command."""
        faults = [] if code in codes else [f"exit code {code}: {text[-1000:]}"]
        faults += [f"a traceback: {text[-3000:]}"] if "Traceback" in text else []
        end = time.monotonic() + 10
        while (left := marked(mark)) and time.monotonic() < end:
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.Error):
                faults.append(f"a process is left: {' '.join(process.cmdline())[:200]}")
                process.kill()
        if shared := os.listdir("/dev/shm"):
            faults.append(f"left in /dev/shm: {', '.join(shared)}")
            for name in shared:
                Path("/dev/shm", name).unlink()
        temporary = [str(path.relative_to(self.folder / "tmp")) for path in (self.folder / "tmp").rglob("*")]
        if code != -signal.SIGKILL and (strange := [name for name in temporary if not LEFT.match(name)]):
            faults.append(f"left in TMPDIR: {', '.join(strange[:5])}")
        for path in (folder / "checkpoints").glob("*.safetensors"):
            try:
                load_checkpoint(path)
            except Exception as error:
                faults.append(f"checkpoint: {error}")
        records = folder / "metrics.jsonl"
        for line in records.read_bytes().split(b"\n")[:-1] if records.exists() else ():
            try:
                json.loads(line)
            except ValueError:
                faults.append(f"a torn row: {line[:100]!r}")
        return faults


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PFSEG_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
