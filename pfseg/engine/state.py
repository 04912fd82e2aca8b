"""What training goes on with: network, optimizer and averaged weights, to and from NumPy arrays.

Every array is float32 and named: weights by their published keys, the optimizer's by `optimizer/<slot>/<key>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pfseg.errors import CheckpointError
from pfseg.runtime import jt

Module = Any  # jittor.Module, which ships no types
Arrays = dict[str, np.ndarray]


def trainable(model: Module) -> dict[str, Any]:
    """Parameters by key, without BatchNorm's running statistics."""
    return {key: var for key, var in model.state_dict().items() if not key.endswith(("running_mean", "running_var"))}


def build_optimizer(name: str, model: Module, *, lr: float, **options: Any) -> Any:
    """Jittor's `sgd`, `adam` or `adamw` over the trainable parameters; raises ValueError for another name."""
    kinds = {"sgd": jt.optim.SGD, "adam": jt.optim.Adam, "adamw": jt.optim.AdamW}
    if name not in kinds:
        raise ValueError(f"optimizer {name!r} is unknown; use one of {', '.join(kinds)} (config: optimizer)")
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    return kinds[name](list(trainable(model).values()), lr, **options)


@contextmanager
def without_sums() -> Iterator[None]:
    """Keep Jittor's optimizers from averaging gradients over ranks at each backward pass; see `average_gradients`."""
    within, jt.in_mpi = jt.in_mpi, False
    try:
        yield
    finally:
        jt.in_mpi = within


def average_gradients(optimizer: Any) -> None:
    """Average the gradients that backward passes have summed up on each rank over all ranks, once per update."""
    before: list[Any] = []
    for group in optimizer.param_groups:
        for parameter, gradient in zip(group["params"], group["grads"], strict=True):
            if parameter.is_stop_grad():
                continue
            averaged = gradient.mpi_all_reduce("mean")
            averaged._add_dependency(before)  # every rank has to send them in the same order
            gradient.update(averaged)
            before = [averaged]


def _slots(optimizer: Any, keys: list[str]) -> dict[str, Any]:
    """The optimizer's own Vars by `optimizer/<slot>/<key>`."""
    (group,) = optimizer.param_groups
    return {
        f"optimizer/{slot}/{key}": var
        for slot, values in group.items()
        if slot not in ("params", "grads") and isinstance(values, list)
        for key, var in zip(keys, values, strict=True)
    }


def export(model: Module, optimizer: Any = None) -> Arrays:
    """Weights of the model and, with an optimizer, its state."""
    state = dict(model.state_dict())
    if optimizer is not None:
        state |= _slots(optimizer, list(trainable(model)))
    jt.sync_all()
    return {key: var.numpy() for key, var in state.items()}


def load_model(model: Module, arrays: Arrays, source: str) -> None:
    """Put all weights into the model.

    Raises:
        CheckpointError: a key is missing or of another shape; nothing is changed then.
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
    _assign(state, arrays)


def load_optimizer(model: Module, optimizer: Any, arrays: Arrays, source: str) -> None:
    """Put the optimizer's state back; raises CheckpointError if it is of another optimizer."""
    slots = _slots(optimizer, list(trainable(model)))
    for key in slots:
        if key not in arrays:
            raise CheckpointError(
                f"{source} lacks {key}: it was trained with another optimizer; resume with the optimizer of the run"
            )
    _assign(slots, arrays)


def _assign(state: dict[str, Any], arrays: Arrays) -> None:
    for key, var in state.items():
        var.assign(jt.array(arrays[key]))
    # Otherwise Jittor fuses the copies with what follows, which then rounds otherwise than in an undisturbed run.
    jt.sync_all()


class WeightAverage:
    """Exponential moving average of weights and running statistics (EMA).

    Args:
        model: network to follow.
        decay: share of the old value kept at each step; smaller at first, (1 + t) / (10 + t) at step t, so that the
            average forgets the initial weights.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.decay = decay
        self.average = {key: var.clone().stop_grad() for key, var in model.state_dict().items()}

    def update(self, model: Module, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for key, var in model.state_dict().items():
            average = self.average[key]
            average.update(average * keep + var.detach() * (1 - keep))

    def load(self, arrays: Arrays) -> None:
        """Continue from stored averages."""
        _assign(self.average, arrays)

    def export(self) -> Arrays:
        """The averages by key."""
        jt.sync_all()
        return {key: var.numpy() for key, var in self.average.items()}
