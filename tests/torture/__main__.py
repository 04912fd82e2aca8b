"""`make torture ARGS="minutes=20 seed=0"`: rounds of kills, full disks and damaged files until the time is over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torture.disks import full_disk
from torture.kills import Rounds

FILES = 40  # of a batch


def main() -> int:
    given = dict(text.partition("=")[::2] for text in sys.argv[1:])
    minutes, seed = float(given.pop("minutes", 20)), int(given.pop("seed", time.time()))
    if given:
        sys.exit(f"unknown: {', '.join(given)}; expected minutes=<number> seed=<number>")
    if os.geteuid() == 0 and "PFSEG_APART" not in os.environ:  # mounts and shared memory of its own
        os.environ["PFSEG_APART"] = "1"
        again = [sys.executable, "-m", "torture", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs t /dev/shm && exec "$@"', "sh", *again])
    end = time.monotonic() + 60 * minutes
    print(f"seed={seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    rounds = Rounds(folder)
    number, files, disks, faults = seed * 100_000, 0, 0, []
    while time.monotonic() < end:
        number += 1
        rounds.run(number)
        if number % 3 == 0 and os.geteuid() == 0:
            disks += 1
            full_disk(rounds, number)
        if number % 2 == 0:
            command = [sys.executable, "-m", "torture.files", str(seed * 100_000 + files), str(FILES)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            files += FILES
            faults += [text for text in done.stdout.splitlines() if text.startswith("seed")]
            faults += [f"the reader of files ended with {done.returncode}"] if done.returncode else []
    for fault in [*rounds.faults, *faults]:
        print(fault)
    print(f"seed={seed}: {rounds.kills} kills, {disks} full disks, {files} damaged files, "
          f"{len(rounds.faults) + len(faults)} faults; {folder if rounds.faults else ''}")  # fmt: skip
    if not rounds.faults:
        shutil.rmtree(folder)
    return bool(rounds.faults or faults)


if __name__ == "__main__":
    sys.exit(main())
