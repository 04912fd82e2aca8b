"""`make torture ARGS="minutes=20 seed=0"`: rounds of kills, full disks and damaged files until the time is over.

`round=<number>` repeats a round, `round=long` watches long runs.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torture.bench import Bench, Round
from torture.long import watch_long_runs
from torture.rounds import FILES, kind_of, play

LANES = 2  # side by side
_CLONE_NEWNS = 0x20000


def lane(bench: Bench, place: int, numbers: Iterable[int], end: float, results: Any) -> None:
    """Play round after round until the time is over."""
    ctypes.CDLL(None).unshare(_CLONE_NEWNS)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    bench.take_lane(place)
    done = list[tuple[str, Round]]()
    for number in numbers:
        if time.monotonic() > end:
            break
        name = kind_of(number).__name__.replace("_", " ")
        result = play(bench, kind_of(number), number)
        state = "FAULTS" if result.faults else "survived"
        print("\n  ".join([f"round {number}, {name}: {', '.join(result.said)}: {state}", *result.faults]), flush=True)
        done.append((name, result))
    results.send(done)


def main() -> int:
    given = dict(text.partition("=")[::2] for text in sys.argv[1:])
    minutes, seed = float(given.pop("minutes", 20)), int(given.pop("seed", time.time()))
    one = given.pop("round", None)
    if given:
        sys.exit(f"unknown: {', '.join(given)}; expected minutes=<number> seed=<number> round=<number>|long")
    if "PFSEG_APART" not in os.environ:  # mounts of its own; root here is whoever started it
        os.environ["PFSEG_APART"] = "1"
        root = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.execvp("unshare", ["unshare", "--mount", *root, sys.executable, "-m", "torture", *sys.argv[1:]])
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    if one:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    if one == "long":
        return watch_long_runs(folder)
    print(f"seed={seed}", flush=True)
    bench = Bench(folder)
    if one:
        result = play(bench, kind_of(int(one)), int(one))
        print(*result.said, *result.faults, sep="\n")
        return bool(result.faults)
    fork = multiprocessing.get_context("fork")
    first, end = seed * 100_000, time.monotonic() + 60 * minutes
    lanes = []
    for place in range(LANES):
        results, sender = fork.Pipe(duplex=False)
        numbers = itertools.count(first + place, LANES)
        process = fork.Process(target=lane, args=(bench, place, numbers, end, sender))
        process.start()
        sender.close()
        lanes.append((process, results))
    done = [row for _, results in lanes for row in results.recv()]  # EOFError where a lane broke
    for process, _ in lanes:
        process.join()
    faults = sum(len(result.faults) for _, result in done)
    rounds = Counter(name for name, _ in done)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(rounds.items()))
    kills, files = sum(result.kills for _, result in done), FILES * rounds["damaged files"]
    print(f"seed={seed}: {kills} kills, {files} files, {faults} faults in rounds of {listed}")
    if not faults:
        shutil.rmtree(folder)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
