"""Speed of PFNet R50 beside the same network in PyTorch, on the same processor: `make bench-eval`.

PyTorch is no dependency of pfseg: `--torch` names a Python that has it, and without one only pfseg is timed. Both have
the same weights and image; equal logits are checked first, and then they take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pfseg import create_model
from pfseg.engine.fold import fold_batchnorm
from pfseg.runtime import jt


class Other:
    """The network in PyTorch, in a process of its own."""

    def __init__(self, python: str, folder: Path) -> None:
        command = [python, str(Path(__file__).with_name("torch_pfnet.py")), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = self._read()
        self.logits = np.load(folder / "logits.npy")

    def run(self) -> float:
        """Seconds of a forward pass."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "PyTorch's process has ended"
        return line


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=896)
    parser.add_argument("--torch", default=sys.executable, help="a Python that has PyTorch")
    arguments = parser.parse_args()
    model = create_model("pfnet_r50", num_classes=16)
    model.eval()
    image = np.random.default_rng(0).standard_normal((1, 3, arguments.size, arguments.size)).astype(np.float32)
    weights = {key: var.numpy() for key, var in model.state_dict().items()}
    fold_batchnorm(model)

    def run() -> float:
        started = time.perf_counter()
        with jt.no_grad():
            model.predict(jt.array(image)).sync(True)
        return time.perf_counter() - started

    with jt.no_grad():
        logits = model.predict(jt.array(image)).numpy()
    table = Table("network", "ms", title=f"PFNet R50, {arguments.size} px, median of {arguments.rounds} rounds")
    if arguments.torch == sys.executable and importlib.util.find_spec("torch") is None:
        ours = [run() for _ in range(arguments.rounds)]
        table.add_row("pfseg", f"{1000 * statistics.median(ours):.0f}")
        table.add_row("PyTorch", "not installed: --torch <python that has it>")
    else:
        with tempfile.TemporaryDirectory() as name:
            np.savez(Path(name) / "weights.npz", **weights)
            np.save(Path(name) / "image.npy", image)
            other = Other(arguments.torch, Path(name))
        error = np.abs(other.logits - logits).max() / np.abs(logits).max()
        assert error < 1e-3, f"logits differ by {error:.1g}"
        times = [(run(), other.run()) for _ in range(arguments.rounds)]
        other.close()
        ours, theirs = (statistics.median(part) for part in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        table.add_row("pfseg", f"{1000 * ours:.0f}")
        table.add_row(other.name, f"{1000 * theirs:.0f}")
        table.add_row("ratio", f"{ratio:.2f}")
        table.caption = f"largest difference of the logits: {error:.1g} of the largest"
    Console().print(table)


if __name__ == "__main__":
    main()
