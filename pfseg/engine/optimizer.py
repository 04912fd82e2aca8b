"""Optimizers: building them, their gradients over the ranks, their state, and averages of the weights.

The state is named `optimizer/<slot>/<key>`, the key being that of the weight it belongs to; the state of the loss's
scale is `optimizer/loss_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from pfseg.config import run_settings
from pfseg.engine import nccl
from pfseg.errors import CheckpointError, ConfigError
from pfseg.ops import kernels, optimizers
from pfseg.runtime import jt
from pfseg.weights.transfer import Arrays, Module, Var, assign, to_arrays

Optimizer = Any  # jittor.optim.Optimizer, which ships no types


def build_optimizer(settings: run_settings.Sgd | run_settings.Adam, model: Module) -> Optimizer:
    """The optimizer over the trainable weights; in fp16 on the GPU kernels it scales the loss.

    Raises ConfigError if `lr_factors` names a part that the network doesn't have.
    """
    weights = _groups(settings, model)
    optimizer: Optimizer
    if isinstance(settings, run_settings.Sgd):
        momentum, decay = settings.momentum, settings.weight_decay
        optimizer = optimizers.Sgd(weights, settings.lr, momentum, decay, nesterov=settings.nesterov)
    else:
        kind = optimizers.AdamW if settings.name == "adamw" else optimizers.Adam
        optimizer = kind(weights, settings.lr, settings.eps, settings.betas, settings.weight_decay)
    if kernels.dtype() == "float16" and kernels.active():
        optimizer.loss_scale = optimizers.LossScale()
    return optimizer


def _groups(settings: run_settings.Sgd | run_settings.Adam, model: Module) -> list[dict[str, Any]]:
    """The weights with their names, in groups of the same factor of the learning rate and the same weight decay."""
    weights, factors = trainable(model), settings.lr_factors
    parts = {key.partition(".")[0] for key in weights}
    for part in factors:
        if part not in parts:
            raise ConfigError(f"optimizer.lr_factors: the network has no part {part!r}; its parts are {sorted(parts)}")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for key, var in weights.items():
        factor = factors.get(key.partition(".")[0], 1.0)
        decay = settings.weight_decay if settings.decay_norms or len(var.shape) > 1 else 0.0
        empty: dict[str, Any] = {"params": [], "names": [], "lr_factor": factor, "weight_decay": decay}
        group = groups.setdefault((factor, decay), empty)
        group["params"].append(var)
        group["names"].append(key)
    return list(groups.values())


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of each group of weights, `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def scale_lr(settings: run_settings.Sgd | run_settings.Adam, global_batch: int) -> float:
    """Learning rate for `global_batch` images per update, from the one for `settings.reference_batch`.

    `linear` multiplies it by the ratio of the batches (Goyal et al., "Accurate, Large Minibatch SGD", 2017), `sqrt` by
    the ratio's root, which suits Adam; `none` leaves it as it is.
    """
    ratio = global_batch / settings.reference_batch
    return settings.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[settings.scale_lr]


@contextmanager
def local_gradients() -> Iterator[None]:
    """Keep Jittor's optimizers from averaging over ranks at each backward pass; see `average_gradients`."""
    within, jt.in_mpi = jt.in_mpi, False
    try:
        yield
    finally:
        jt.in_mpi = within


def average_gradients(optimizer: Optimizer) -> None:
    """Average the gradients that the backward passes of each rank have summed up over all ranks."""
    if kernels.active():  # in one message
        own = [gradient for _, gradient in gradients(optimizer)]
        averages = optimizers.split(nccl.average(optimizers.join(own)), own)
        for gradient, averaged in zip(own, averages, strict=True):
            gradient.update(averaged)
        return
    before: list[Var] = []
    for _, gradient in gradients(optimizer):
        averaged = gradient.mpi_all_reduce("mean")
        averaged._add_dependency(before)  # every rank has to send them in the same order
        gradient.update(averaged)
        before = [averaged]


def gradients(optimizer: Optimizer) -> Iterator[tuple[Var, Var]]:
    """Each weight that learns, with its gradient."""
    for group in optimizer.param_groups:
        for parameter, gradient in zip(group["params"], group["grads"], strict=True):
            if not parameter.is_stop_grad():
                yield parameter, gradient


def gradient_norms(model: Module, optimizer: Optimizer) -> tuple[list[str], Var]:
    """Norms of the gradients that the optimizer holds.

    Returns:
        Names, `grad_norm` over all weights and `grad_norm/<part>` for each of the network's parts (`layer0`, `head`,
        ...), and their values (T,) float32, which stay on the device.
    """
    parts = {id(parameter): name.partition(".")[0] for name, parameter in model.named_parameters()}
    if kernels.active():
        by_part: dict[str, list[Var]] = {}
        for parameter, gradient in gradients(optimizer):
            by_part.setdefault(parts[id(parameter)], []).append(gradient)
        ends = list(accumulate(map(len, by_part.values())))
        scale = getattr(optimizer, "loss_scale", None)
        norms = optimizers.measure([g for part in by_part.values() for g in part], ends, scale=scale)[0]
        return ["grad_norm", *(f"grad_norm/{part}" for part in by_part)], norms
    squares: dict[str, Var] = {}
    for parameter, gradient in gradients(optimizer):
        part, square = parts[id(parameter)], gradient.sqr().sum()
        squares[part] = squares[part] + square if part in squares else square
    values = jt.concat([square.reshape(1) for square in squares.values()])
    names = ["grad_norm", *(f"grad_norm/{part}" for part in squares)]
    return names, jt.concat([values.sum().reshape(1), values]).sqrt()


def export_optimizer(optimizer: Optimizer) -> Arrays:
    """State of the optimizer."""
    return to_arrays(_state(optimizer))


def load_optimizer(optimizer: Optimizer, arrays: Arrays, source: str) -> None:
    """Restore the state of the optimizer; raises CheckpointError where `source` was trained with another one."""
    state = _state(optimizer)
    for key in state:
        if key not in arrays:
            raise CheckpointError(
                f"{source} lacks {key}: it was trained with another optimizer; resume with the optimizer of the run"
            )
    assign(state, arrays)


def trainable(model: Module) -> dict[str, Var]:
    """Weights by key, without BatchNorm's running statistics."""
    return {key: var for key, var in model.state_dict().items() if not key.endswith(("running_mean", "running_var"))}


def _state(optimizer: Optimizer) -> dict[str, Var]:
    scale = getattr(optimizer, "loss_scale", None)
    return ({"optimizer/loss_scale": scale.state} if scale else {}) | {
        f"optimizer/{slot}/{key}": var
        for group in optimizer.param_groups
        for slot, values in group.items()
        if slot not in ("params", "grads", "names") and isinstance(values, list)
        for key, var in zip(group["names"], values, strict=True)
    }


class WeightAverage:
    """Exponential moving average (EMA) of a network's weights and running statistics.

    `decay` is the share of the old value that each step keeps; at first it is smaller, (1 + t) / (10 + t) at step t, so
    that the average forgets the initial weights.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.decay = decay
        self.average = {key: var.clone().stop_grad() for key, var in model.state_dict().items()}

    def update(self, model: Module, step: int) -> None:
        """Include the weights after `step` (from 0)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        weights = model.state_dict()
        if kernels.active():
            optimizers.average(list(self.average.values()), [weights[key] for key in self.average], keep)
            return
        for key, var in weights.items():
            average = self.average[key]
            average.update(average * keep + var.detach() * (1 - keep))

    def load(self, arrays: Arrays) -> None:
        """Continue from stored averages."""
        assign(self.average, arrays)

    def export(self) -> Arrays:
        """The averages by key."""
        return to_arrays(self.average)
