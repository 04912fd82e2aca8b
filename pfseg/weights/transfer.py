"""Weights of a network to and from NumPy arrays by their published keys, all float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pfseg.errors import CheckpointError
from pfseg.runtime import jt

Arrays = dict[str, np.ndarray]
Module = jt.nn.Module
Var = jt.Var


def export_weights(model: Module) -> Arrays:
    """Weights and running statistics of a network."""
    return to_arrays(model.state_dict())


def load_weights(model: Module, arrays: Arrays, source: str) -> None:
    """Replace all weights of a network by arrays from `source`, a name for messages.

    Raises CheckpointError if a key is missing or has another shape; the network then stays as it was.
    """
    state = model.state_dict()
    for key, var in state.items():
        if key not in arrays:
            raise CheckpointError(f"{source} lacks {key}: it is of another model; check model and model/backbone")
        if tuple(arrays[key].shape) != tuple(var.shape):
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(arrays[key].shape)}, expected {tuple(var.shape)}; "
                "it is of another model or class count (config: model, dataset.classes)"
            )
    assign(state, arrays)


def to_arrays(variables: Mapping[str, Var]) -> Arrays:
    """Copies of Jittor variables on the CPU."""
    jt.sync_all()
    return {key: var.numpy() for key, var in variables.items()}


def assign(variables: Mapping[str, Var], arrays: Arrays) -> None:
    """Replace the values of Jittor variables by the arrays of the same keys."""
    for key, var in variables.items():
        var.assign(jt.array(arrays[key]))
    # Otherwise Jittor fuses the copies with what follows, which then rounds differently than in an undisturbed run.
    jt.sync_all()
