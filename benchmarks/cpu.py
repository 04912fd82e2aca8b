"""PFNet R50 on a CPU in each precision beside PyTorch in each of its modes, and the page about it: `make bench-cpu`.

    python benchmarks/cpu.py --torch <python with PyTorch> [--work train] [--write]

Both run the same network with the same weights, images and loss, and take turns. `--write` keeps the results in
docs/benchmarks/cpu.json and makes docs/benchmarks/cpu.md of all that are there.
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
from speed import TorchNetwork, sgd

from pfseg import create_model
from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.targets import instantiate
from pfseg.inference.folding import fold_batchnorm
from pfseg.ops import kernels
from pfseg.runtime import jt

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "cpu.md"
WORK = {"predict": "prediction of an image of 896 px", "train": "training step with 2 images of 512 px"}
SIZES = {"predict": (1, 896), "train": (2, 512)}
PRECISIONS = ("fp32", "bf16")
MODES = {"fp32": "fp32", "channels_last": "fp32, channels last", "bf16": "bf16 autocast, channels last"}
INTRODUCTION = """\
# CPUs

`make bench-cpu TORCH=<python with PyTorch> ARGS=--write` makes this page. `pfnet_r50` with 16 classes runs in pfseg
and in PyTorch, which take turns; figures are medians of {rounds} rounds, and a ratio says how many times as fast pfseg
is. A training step consists of the forward pass, PFNet's loss with OHEM, the backward pass and SGD.
"""


def work_of(model: Any, arrays: dict[str, np.ndarray], training: bool) -> Callable[[str], float]:
    """A function that works once in a precision and returns the seconds."""
    if training:
        model.train()
        model.head.ppm.bottleneck[3].p = 0.0  # the other network has no dropout
        optimizer = sgd(model)
    else:
        model.eval()
        fold_batchnorm(model)
    loss = instantiate(checked(compose("train", ["loss=pfnet", "gpus=0", "ranks=1"]), Train).loss)

    def run(precision: str) -> float:
        kernels.set_precision(precision)
        started = time.perf_counter()
        image, mask, edge = (jt.array(arrays[name]) for name in ("image", "mask", "edge"))
        if training:
            optimizer.step(sum(loss(model(image), {"mask": mask, "edge": edge}).values()))
            jt.sync_all(True)
        else:
            with jt.no_grad():
                model.predict(image).sync(True)
        return time.perf_counter() - started

    return run


def measure(work: str, rounds: int, python: str) -> dict[str, Any]:
    """Median seconds by precision, of pfseg, and by mode, of PyTorch."""
    batch, size = SIZES[work]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 16, (batch, size // 32, size // 32))
    arrays = {
        "image": rng.standard_normal((batch, 3, size, size)).astype(np.float32),
        "mask": np.kron(coarse, np.ones((1, 32, 32))).astype(np.int32),
        "edge": (rng.random((batch, size, size)) < 0.1).astype(np.float32),
    }
    model = create_model("pfnet_r50", num_classes=16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "weights.npz", **{key: var.numpy() for key, var in model.state_dict().items()})
        for key, array in arrays.items():
            if key == "image" or work == "train":
                np.save(folder / f"{key}.npy", array)
        run = work_of(model, arrays, work == "train")
        other = TorchNetwork(python, "torch_pfnet.py", folder, "--modes")
        for precision in PRECISIONS:
            run(precision)  # compiles
        for mode in MODES:
            other.run(mode)
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for precision in PRECISIONS:
                times.setdefault(precision, []).append(run(precision))
            for mode in MODES:
                times.setdefault(f"PyTorch {mode}", []).append(other.run(mode))
        other.close()
    seconds = {key: round(statistics.median(values), 3) for key, values in times.items()}
    return {
        "machine": machine(),
        "date": f"{date.today():%d %B %Y}",
        "other": other.name,
        "rounds": rounds,
        "s": seconds,
    }


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
        result, seconds = results[work], results[work]["s"]
        first, rest = WORK[work][0].upper(), WORK[work][1:]
        parts.append(f"## {first}{rest}\n\n{result['machine']}; {result['other']}; {result['date']}.\n")
        rows = [["", "seconds", *(f"ratio of pfseg in {precision}" for precision in PRECISIONS)], ["---"] * 4]
        rows += [[f"pfseg, {precision}", f"{seconds[precision]:.2f}", "", ""] for precision in PRECISIONS]
        for mode, words in MODES.items():
            theirs = seconds[f"PyTorch {mode}"]
            rows.append([f"PyTorch, {words}", f"{theirs:.2f}", *(f"{theirs / seconds[p]:.2f}" for p in PRECISIONS)])
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="a Python that has PyTorch")
    parser.add_argument("--work", choices=list(WORK), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    stored = PAGE.with_suffix(".json")
    results = json.loads(stored.read_text()) if arguments.write and stored.exists() else {}
    for work in arguments.work or WORK:
        results[work] = measure(work, arguments.rounds, arguments.torch)
    sys.stdout.write(page(results))
    if arguments.write:
        stored.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
