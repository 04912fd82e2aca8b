"""Time of a window in Jittor and in ONNX Runtime, in turns: `python benchmarks/onnx_speed.py [rounds] [side]`.

It is the processor's time on one thread, on which other work of the machine has little effect.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime

from pfseg import create_model
from pfseg.export.model import to_onnx
from pfseg.inference.folding import JittorNetwork

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def milliseconds(function: Callable[[], object]) -> float:
    """The processor's time for a call."""
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def main(rounds: int, side: int) -> None:
    """Print medians for each network."""
    batch = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    sys.stdout.write(f"1 thread, {side} px, median of {rounds} calls in turns\n")
    for name in ("pfnet_r18", "pfnet_r50"):
        model = create_model(name, num_classes=6)
        model.eval()
        made = to_onnx(model, size=side, mean=MEAN, std=STD, dynamic_batch=False, metadata={})  # folds both
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(made.SerializeToString())
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        jittor, exported = partial(JittorNetwork(model.predict), batch), partial(session.run, None, {"image": batch})
        calls = {"Jittor": jittor, "ONNX Runtime": exported}
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {label: [] for label in calls}
        for _ in range(rounds):
            for label, call in calls.items():
                times[label].append(milliseconds(call))
        for label, values in times.items():
            sys.stdout.write(f"{name} {label}: {statistics.median(values):.0f} ms ({min(values):.0f} at best)\n")


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    main(*(numbers + [15, 512][len(numbers) :]))
