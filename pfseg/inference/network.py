"""Networks as functions of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pfseg.inference.views import Network
from pfseg.runtime import jt
from pfseg.weights.transfer import Var


def as_function(predict: Callable[[Var], Var]) -> Network:
    """The `predict` of a network in evaluation mode, without gradients."""

    def network(batch: np.ndarray) -> np.ndarray:
        with jt.no_grad():
            logits: np.ndarray = predict(jt.array(batch)).numpy()
        return logits

    return network
