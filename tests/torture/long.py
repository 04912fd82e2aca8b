"""Long runs, watched: memory, threads, files and disk of each process must not grow with the steps."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import psutil
from runs import rows

from torture.bench import Bench, train

SECONDS = 2.0  # between two looks
GROWTH = {"MiB": 30.0, "threads": 1.0, "files": 1.0}  # allowed over the watched part of a run
KINDS = {  # by what is in their command lines
    "prterun": "mpirun",
    "pfseg.launch.worker": "rank and beside it",
    "spawn_main": "loading processes",
    "resource_tracker": "tracker",
}


def watch_long_runs(folder: Path) -> int:
    """3,000 steps, 500 epochs of 2 steps, and 2,000 predicted images; prints slopes, returns 1 if anything grows."""
    bench = Bench(folder, only=["train"])
    images = folder / "many"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(2000):
        cv2.imwrite(str(images / f"{number}.png"), random.integers(0, 256, (64, 64, 3), np.uint8))
    quiet = ["trainer.save_every=null", "trainer.log_every=50"]
    steps = ["dataset.train_images=600", "trainer.max_epochs=10", *quiet]
    epochs = ["dataset.train_images=4", "trainer.max_epochs=500", "trainer.val_every=50", *quiet]
    run = bench.reference("train")
    predict = [
        "predict",
        f"checkpoint={run}",
        "trust=true",
        f"input={images}",
        f"output={folder / 'maps'}",
        "window=64",
    ]
    return max(
        watch(bench, "3,000 steps", [*train(folder / "steps"), *steps], lambda: steps_of(folder / "steps")),
        watch(
            bench, "500 epochs of 2 steps", [*train(folder / "epochs"), *epochs], lambda: steps_of(folder / "epochs")
        ),
        watch(bench, "2,000 images", predict, lambda: sum(1 for _ in (folder / "maps").glob("*.png"))),
    )


def steps_of(folder: Path) -> int:
    """The last step that was logged."""
    return max((row["step"] for row in rows(folder, "train")), default=0) if (folder / "metrics.jsonl").exists() else 0


def watch(bench: Bench, name: str, arguments: list[str], count: Callable[[], int]) -> int:
    """Run a command and print how much each of its processes grew in its last two thirds, per 1,000 of what it did."""
    looks: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    with open(bench.folder / "output.txt", "w") as output:
        process = bench.start(arguments, name, output=output)
        while process.poll() is None:
            time.sleep(SECONDS)
            seen = Counter[tuple[str, str]]()  # sums over the processes of a kind
            for each in bench.processes(name):
                with suppress(psutil.Error):
                    what = "command" if each.pid == process.pid else kind(each)
                    seen[what, "MiB"] += each.memory_full_info().uss / 2**20
                    seen[what, "threads"] += each.num_threads()
                    seen[what, "files"] += each.num_fds()
            kept = [*bench.temporary.rglob("*"), *Path("/dev/shm").iterdir()]
            seen["temporary files", "MiB"] = sum(path.stat().st_size for path in kept if path.is_file()) / 2**20
            place = count()
            for key, amount in seen.items():
                looks[key].append((place, amount))
    assert process.returncode == 0, (bench.folder / "output.txt").read_text()
    total, failed = count(), 0
    print(f"{name}:")
    for (what, unit), values in looks.items():
        places, amounts = np.array([row for row in values if total / 3 <= row[0] < total] or [(0, 0)]).T
        if len(set(places)) > 3:
            slope = np.polyfit(places, amounts, 1)[0]
            grows = slope * total * 2 / 3 > GROWTH[unit]
            failed |= grows
            grown = "  GROWS" if grows else ""
            print(f"  {what:<18} {np.median(amounts):8.1f} {unit:<8} {1000 * slope:+8.2f} per 1,000{grown}", flush=True)
    return int(failed)


def kind(process: psutil.Process) -> str:
    """What a process is, by its command line."""
    line = " ".join(process.cmdline())
    return next((name for text, name in KINDS.items() if text in line), process.name())
