"""Speed of networks beside the same in PyTorch, on the same processor: `make bench-eval`, `make bench-train`.

pfseg doesn't depend on PyTorch: `--torch` names a Python that has it; without one only pfseg is timed. Both have the
same weights and image. The benchmark first checks that their logits agree, and then lets them take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pfseg import create_model
from pfseg.config import run_settings
from pfseg.engine.optimizer import build_optimizer
from pfseg.inference.folding import fold_batchnorm
from pfseg.losses import CrossEntropy
from pfseg.ops.layers import Random
from pfseg.runtime import jt

_SCRIPTS = {"pfnet_r50": "torch_pfnet.py", "segnext_t": "torch_segnext.py"}


class Network:
    """A network in a process of its own, by a script that runs it once for each line on its standard input."""

    def __init__(self, python: str, script: str, folder: Path, *options: str) -> None:
        command = [python, str(Path(__file__).with_name(script)), str(folder), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._read()
        self.logits = np.load(folder / "logits.npy")

    def run(self, mode: str = "") -> float:
        """Seconds of one piece of work, in a mode of those that the script knows."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> int:
        """End the process; returns the most bytes that it held."""
        assert self._process.stdin is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        self._process.stdin.close()
        self._process.wait()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"{self._process.args} has ended"
        return line


def inference(model: Any, image: np.ndarray) -> Callable[[], float]:
    """A function that runs a forward pass with folded BatchNorm and returns its seconds."""
    fold_batchnorm(model)

    def run() -> float:
        started = time.perf_counter()
        with jt.no_grad():
            model.predict(jt.array(image)).sync(True)
        return time.perf_counter() - started

    return run


def sgd(model: Any) -> Any:
    """SGD as the other network has it."""
    settings = run_settings.Sgd(
        name="sgd",
        lr=1e-4,
        scale_lr="none",
        reference_batch=16,
        momentum=0.9,
        weight_decay=1e-4,
        nesterov=False,
        decay_norms=True,
        lr_factors={},
    )
    return build_optimizer(settings, model)


def training(model: Any, image: np.ndarray, mask: np.ndarray) -> Callable[[], float]:
    """A function that trains a step (forward, cross entropy, backward, SGD) and returns its seconds."""
    model.train()
    for part in model.modules():
        if isinstance(part, Random):
            part.p = 0.0  # the other network leaves nothing out
    optimizer = sgd(model)
    loss = CrossEntropy()

    def run() -> float:
        started = time.perf_counter()
        optimizer.step(loss(model(jt.array(image)).logits, jt.array(mask)))
        jt.sync_all(True)
        return time.perf_counter() - started

    return run


def compare(run: Callable[[], float], arguments: argparse.Namespace, folder: Path, logits: np.ndarray) -> Table:
    """Take turns with PyTorch, if it is there."""
    work = f"{'training step' if arguments.train else 'inference'}, {arguments.batch} x {arguments.size} px"
    table = Table("network", "ms", title=f"{arguments.model}, {work}, median of {arguments.rounds} rounds")
    if arguments.torch == sys.executable and importlib.util.find_spec("torch") is None:
        run()
        table.add_row("pfseg", f"{1000 * statistics.median(run() for _ in range(arguments.rounds)):.0f}")
        table.add_row("PyTorch", "not installed: --torch <python that has it>")
        return table
    other = Network(arguments.torch, _SCRIPTS[arguments.model], folder)
    error = np.abs(other.logits - logits).max() / np.abs(logits).max()
    assert error < 1e-3, f"logits differ by {error:.1g}"
    run(), other.run()  # compiles
    times = [(run(), other.run()) for _ in range(arguments.rounds)]
    other.close()
    ours, theirs = (statistics.median(part) for part in zip(*times, strict=True))
    table.add_row("pfseg", f"{1000 * ours:.0f}")
    table.add_row(other.name, f"{1000 * theirs:.0f}")
    table.add_row("ratio", f"{statistics.median(b / a for a, b in times):.2f}")
    table.caption = f"largest difference of the logits: {error:.1g} of the largest"
    return table


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=_SCRIPTS, default="pfnet_r50")
    parser.add_argument("--train", action="store_true", help="training steps instead of inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, help="side in pixels; default 896, in training 256")
    parser.add_argument("--batch", type=int, help="images; default 1, in training 4")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has PyTorch")
    arguments = parser.parse_args()
    arguments.size = arguments.size or (256 if arguments.train else 896)
    arguments.batch = arguments.batch or (4 if arguments.train else 1)
    model = create_model(arguments.model, num_classes=16)
    model.eval()
    rng = np.random.default_rng(0)
    image = rng.standard_normal((arguments.batch, 3, arguments.size, arguments.size)).astype(np.float32)
    mask = rng.integers(0, 16, (arguments.batch, arguments.size, arguments.size))
    with jt.no_grad():
        logits = model.predict(jt.array(image)).numpy()
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name) / "weights.npz", **{key: var.numpy() for key, var in model.state_dict().items()})
        np.save(Path(name) / "image.npy", image)
        if arguments.train:
            np.save(Path(name) / "mask.npy", mask)
            run = training(model, image, mask.astype(np.int32))
        else:
            run = inference(model, image)
        Console().print(compare(run, arguments, Path(name), logits))


if __name__ == "__main__":
    main()
