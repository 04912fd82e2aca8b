"""PFNet R50 on a CPU in each precision beside PyTorch in each of its modes, and the page about it: `make bench-cpu`.

    python benchmarks/cpu.py --torch <python with PyTorch> [--work train] [--rounds 5] [--write]

Both run the same network with the same weights, images and loss, and take turns; memory is the peak of a process of its
own for each mode. `--write` keeps the results in docs/benchmarks/cpu.json and makes cpu.md and cpu.png of all that are
there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from speed import Network, sgd

from pfseg import create_model
from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.targets import instantiate
from pfseg.files import write_atomic
from pfseg.inference.folding import fold_batchnorm
from pfseg.ops import kernels
from pfseg.runtime import jt

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "cpu.md"
WORK = {"predict": "prediction of an image of 896 px", "train": "training step with 2 images of 512 px"}
SIZES = {"predict": (1, 896), "train": (2, 512)}
PRECISIONS = ("fp32", "bf16")
MODES = {"fp32": "fp32", "channels_last": "fp32, channels last", "bf16": "bf16 autocast, channels last"}
LABELS = {precision: f"pfseg, {precision}" for precision in PRECISIONS} | {
    f"PyTorch {mode}": f"PyTorch, {words}" for mode, words in MODES.items()
}
INTRODUCTION = """\
# CPUs

`make bench-cpu TORCH=<python with PyTorch> ARGS=--write` makes this page. `pfnet_r50` with 16 classes runs in pfseg
and in PyTorch, which take turns; seconds are medians of {rounds} rounds, a ratio says how many times as fast pfseg is,
and memory is the peak of a process that works once, imports included. A training step consists of the forward pass,
PFNet's loss with OHEM, the backward pass and SGD.

![Seconds of each as bars](cpu.png)
"""


def prepare(folder: Path, work: str) -> None:
    """Write the network's weights and a batch for a kind of work, which both sides read."""
    batch, size = SIZES[work]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 16, (batch, size // 32, size // 32))
    np.save(folder / "image.npy", rng.standard_normal((batch, 3, size, size)).astype(np.float32))
    if work == "train":
        np.save(folder / "mask.npy", np.kron(coarse, np.ones((1, 32, 32))).astype(np.int32))
        np.save(folder / "edge.npy", (rng.random((batch, size, size)) < 0.1).astype(np.float32))
    jt.set_global_seed(0)
    state = create_model("pfnet_r50", num_classes=16).state_dict()
    np.savez(folder / "weights.npz", **{key: var.numpy() for key, var in state.items()})


def serve(folder: Path) -> None:
    """Work once for each precision on the standard input, and say for how long, as `torch_pfnet.py` does."""
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy") if path.stem != "logits"}
    model = create_model("pfnet_r50", num_classes=16)
    model.load_state_dict(dict(np.load(folder / "weights.npz")))
    model.eval()
    if not (folder / "logits.npy").exists():
        with jt.no_grad():
            np.save(folder / "logits.npy", model.predict(jt.array(arrays["image"])).numpy())
    run = training(model, arrays) if "mask" in arrays else prediction(model, arrays["image"])
    say("pfseg")
    for line in sys.stdin:
        kernels.set_precision(line.strip())
        started = time.perf_counter()
        run()
        say(str(time.perf_counter() - started))


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def training(model: Any, arrays: dict[str, np.ndarray]) -> Callable[[], None]:
    """A function that trains a step."""
    model.train()
    model.head.ppm.bottleneck[3].p = 0.0  # the other network has no dropout
    optimizer = sgd(model)
    loss = instantiate(checked(compose("train", ["loss=pfnet", "gpus=0", "ranks=1"]), Train).loss)

    def run() -> None:
        image, mask, edge = (jt.array(arrays[name]) for name in ("image", "mask", "edge"))
        optimizer.step(sum(loss(model(image), {"mask": mask, "edge": edge}).values()))
        jt.sync_all(True)

    return run


def prediction(model: Any, image: np.ndarray) -> Callable[[], None]:
    """A function that predicts, with BatchNorm folded."""
    fold_batchnorm(model)

    def run() -> None:
        with jt.no_grad():
            model.predict(jt.array(image)).sync(True)

    return run


def start(folder: Path, python: str) -> tuple[Network, Network]:
    """Both sides, in processes of their own; ends with an AssertionError if their logits differ."""
    ours = Network(sys.executable, "cpu.py", folder, "--serve")
    (folder / "logits.npy").unlink()  # each side writes it if it is missing
    theirs = Network(python, "torch_pfnet.py", folder, "--modes")
    error = np.abs(ours.logits - theirs.logits).max() / np.abs(theirs.logits).max()
    assert error < 1e-3, f"logits differ by {error:.1g}"
    return ours, theirs


def measure(work: str, rounds: int, python: str) -> dict[str, Any]:
    """Median seconds and peak memory by precision, of pfseg, and by mode, of PyTorch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, work)
        sides = start(folder, python)
        turns = {key: (sides[key.startswith("PyTorch")], key.split()[-1]) for key in LABELS}
        times: dict[str, list[float]] = {key: [] for key in turns}
        for turn in range(rounds + 1):
            for key, (side, mode) in turns.items():
                seconds = side.run(mode)
                if turn:  # the first one compiles
                    times[key].append(seconds)
        other = sides[1].name
        for side in sides:
            side.close()
        memory = {key: peak(folder, python, key) for key in turns}
    return {
        "machine": machine(),
        "date": f"{date.today():%d %B %Y}",
        "other": other,
        "rounds": rounds,
        "s": {key: round(statistics.median(values), 3) for key, values in times.items()},
        "GB": {key: round(size / 1e9, 2) for key, size in memory.items()},
    }


def peak(folder: Path, python: str, key: str) -> int:
    """Most bytes that a process holds which works once."""
    if key.startswith("PyTorch"):
        side = Network(python, "torch_pfnet.py", folder, "--modes")
    else:
        side = Network(sys.executable, "cpu.py", folder, "--serve")
    side.run(key.split()[-1])
    return side.close()


def machine() -> str:
    """The processor in words."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    able = [word for flag, word in FEATURES.items() if flag in fields["flags"].split()]
    return f"{fields['model name']}, {os.cpu_count()} cores, {', '.join(able)}"


FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}


def page(results: dict[str, Any]) -> str:
    """The page about the results by work."""
    parts = [INTRODUCTION.format(rounds=min(result["rounds"] for result in results.values()))]
    for work in filter(results.get, WORK):
        result, seconds, memory = results[work], results[work]["s"], results[work]["GB"]
        parts.append(f"## {WORK[work].capitalize()}\n\n{result['machine']}; {result['other']}; {result['date']}.\n")
        rows = [["", "seconds", "memory, GB", *(f"ratio of pfseg in {precision}" for precision in PRECISIONS)]]
        rows += [["---"] * len(rows[0])]
        for key, words in LABELS.items():
            ratios = [f"{seconds[key] / seconds[p]:.2f}" if key.startswith("PyTorch") else "" for p in PRECISIONS]
            rows.append([words, f"{seconds[key]:.2f}", f"{memory[key]:.2f}", *ratios])
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(parts)


def bars(results: dict[str, Any]) -> Image.Image:
    """Seconds of each as a bar, by work."""
    done = [work for work in WORK if work in results]
    line, left, width = 30, 320, 900
    picture = Image.new("RGB", (width, line * (len(LABELS) + 2) * len(done)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(17)
    for index, work in enumerate(done):
        top, seconds = line * (len(LABELS) + 2) * index, results[work]["s"]
        draw.text((10, top + 8), WORK[work].capitalize(), "black", font)
        for number, (key, words) in enumerate(LABELS.items(), 1):
            y = top + line * number
            length = (width - left - 90) * seconds[key] / max(seconds.values())
            draw.text((left - 10, y + line / 2 + 4), words, "black", font, anchor="rm")
            draw.rectangle(
                (left, y + 6, left + length, y + line), "#9aa5b1" if key.startswith("PyTorch") else "#0b6e99"
            )
            draw.text((left + length + 8, y + line / 2 + 4), f"{seconds[key]:.2f} s", "black", font, anchor="lm")
    return picture


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--torch", help="a Python that has PyTorch")
    parser.add_argument("--work", choices=list(WORK), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.folder)
        return
    if not arguments.torch:
        parser.error("--torch missing: name a Python that has PyTorch (make bench-cpu TORCH=...)")
    stored = PAGE.with_suffix(".json")
    results = json.loads(stored.read_text()) if arguments.write and stored.exists() else {}
    for work in arguments.work or WORK:
        results[work] = measure(work, arguments.rounds, arguments.torch)
        if arguments.write:  # after each, so that what is measured stays if the next one fails
            write_atomic(stored, json.dumps(results, indent=1) + "\n")
            write_atomic(PAGE, page(results))
            bars(results).save(PAGE.with_suffix(".png"))
    sys.stdout.write(page(results))


if __name__ == "__main__":
    main()
