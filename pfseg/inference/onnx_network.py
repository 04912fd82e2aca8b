"""A network in an ONNX file, run by ONNX Runtime: without Jittor and without a compiler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.errors import CheckpointError, MissingPackage, one_line
from pfseg.weights.onnx_file import read_onnx

_LEAST = 1e-30  # instead of a probability of 0, which has no logarithm


class OnnxNetwork:
    """A function of normalised batches (N, C, size, size) float32 that gives logits (N, K, size, size) float32.

    The graph normalises by itself, so that the batch is first turned back into colours; and it gives probabilities,
    whose logarithms are logits.

    Attributes:
        size: the only side of images that it takes, in pixels.
        device: `cuda` or `cpu`.

    Raises:
        CheckpointError: see `read_onnx`; or ONNX Runtime doesn't know an operator of the file.
        ConfigError: onnx or onnxruntime isn't installed.
    """

    def __init__(self, path: Path) -> None:
        file = read_onnx(path)
        self.path, self.size, self._batch = path, file.size, file.batch
        self._mean, self._std = (np.array(each, np.float32)[:, None, None] for each in (file.mean, file.std))
        self._session = _start(path, file.opset)
        self._input = self._session.get_inputs()[0].name
        self.device = "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Logits of a normalised batch."""
        logits: np.ndarray = np.log(np.maximum(self._probabilities(batch), _LEAST))
        return logits

    def labels(self, batch: np.ndarray) -> np.ndarray:
        """Most probable class (N, size, size) uint8 of a normalised batch."""
        labels: np.ndarray = self._probabilities(batch).argmax(1).astype(np.uint8)
        return labels

    def _probabilities(self, batch: np.ndarray) -> np.ndarray:
        images = batch * self._std + self._mean
        step = self._batch or len(images)
        parts = [images[first : first + step] for first in range(0, len(images), step)]
        return np.concatenate([self._session.run(None, {self._input: part})[0] for part in parts])


def _start(path: Path, opset: int) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackage(str(path), "onnxruntime", "onnx") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))  # 0: one for each core
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in ort.get_available_providers()]
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no common class
        raise CheckpointError(
            f"ONNX Runtime {ort.__version__} can't run {path}, which uses opset {opset} ({one_line(error)}): export "
            "the checkpoint again, by pfseg export, or update onnxruntime"
        ) from error
