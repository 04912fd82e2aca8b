"""Networks as they are used for prediction alone: as a function of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pfseg.runtime import jt

Module = Any  # jittor.Module, which ships no types


def as_function(model: Module) -> Callable[[np.ndarray], np.ndarray]:
    """The `predict` of a network in evaluation mode, for NumPy arrays.

    Args:
        model: network with `predict`.

    Returns:
        A function from a normalised batch (N, 3, H, W) float32 to logits (N, K, H, W) float32.
    """
    model.eval()

    def predict(batch: np.ndarray) -> np.ndarray:
        with jt.no_grad():
            return model.predict(jt.array(batch)).numpy()

    return predict
