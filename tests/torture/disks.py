"""Disks that fill up at a random moment: the command says so in one line, and goes on once there is space."""

from __future__ import annotations

import shutil
import subprocess
from random import Random

from torture.kills import Rounds


def full_disk(rounds: Rounds, seed: int) -> None:
    """Run a command whose output is on a disk that fills up, and again with space; adds what went wrong."""
    random = Random(seed)
    name = random.choice(("train", "train", "evaluate", "predict", "prepare"))
    work, disk = rounds.works[name], rounds.folder / f"disk-{seed}"
    reference = rounds.folder / f"expected-{name}"
    need = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    size = max(64, random.randrange(need >> 10))
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
    said = f"full disk {seed}, {name}, {size} KiB of {need >> 10}:"
    faults = []
    try:
        code, text = rounds.finish(rounds.start(work.arguments(disk / "run"), str(seed)))
        faults += rounds.check(disk / "run", str(seed), code, {0, 1}, text)
        if code == 1 and "free some space" not in text:
            faults.append(f"the cause isn't named: {text[-1000:]}")
        subprocess.run(["mount", "-o", f"remount,size={(need >> 10) * 4 + 10_000}k", str(disk)], check=True)
        code, text = rounds.finish(rounds.start((work.again or work.arguments)(disk / "run"), str(seed)))
        if code:
            faults.append(f"it can't go on, exit code {code}: {text[-2000:]}")
        elif (result := work.result(disk / "run")) != work.expected:
            faults.append(f"the result differs: {result}, expected {work.expected}")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    shutil.rmtree(disk)
    if faults:
        rounds.faults.append("\n  ".join([said, *faults]))
    print(said, "FAULTS" if faults else "survived", flush=True)
