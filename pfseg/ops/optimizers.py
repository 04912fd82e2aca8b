"""SGD, Adam and AdamW: Jittor's own on a CPU; on the GPU kernels the same formulas for all weights in a few launches.

Weights, gradients and state are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pfseg.ops import kernels
from pfseg.runtime import Var, jt

_EACH = 8192  # values that give one partial sum, as in optimizer.cu


class LossScale:
    """What the loss is multiplied by, so that float16 holds its gradients.

    It doubles after 2000 updates and halves when a gradient isn't finite; all that happens on the device.

    Attributes:
        state: (2,) float32, the scale and the updates since it changed.
    """

    def __init__(self) -> None:
        self.state: Var = jt.array([65536.0, 0.0]).stop_grad()

    @property
    def value(self) -> Var:
        """The scale (1,)."""
        scale: Var = self.state[:1]
        return scale


class _OnKernels(jt.optim.Optimizer):
    """What the optimizers share.

    Attributes:
        loss_scale: if set, `backward` scales the loss, and `step` undoes that; it changes no weight if a gradient isn't
            finite.
    """

    function = ""
    slots: tuple[str, ...] = ()  # of the state

    loss_scale: LossScale | None = None
    _max_norm = 0.0

    def backward(self, loss: Var, retain_graph: bool = False) -> None:
        """Add the gradients of a loss to those that the next step takes."""
        super().backward(loss * self.loss_scale.value if self.loss_scale else loss, retain_graph)

    def clip_grad_norm(self, max_norm: float, norm_type: int = 2) -> None:
        """Shrink the gradients of the next step to a norm of `max_norm`; on the GPU kernels `step` does that."""
        if kernels.active():
            self._max_norm = max_norm
        else:
            super().clip_grad_norm(max_norm, norm_type)

    def step(self, loss: Var | None = None) -> None:
        """Update the weights."""
        if not kernels.active():
            super().step(loss)
            return
        self.pre_step(loss)
        factor = self._factor()
        for group in self.param_groups:
            learning = [i for i, weight in enumerate(group["params"]) if not weight.is_stop_grad()]
            kinds = [[group[name][i] for i in learning] for name in ("params", "grads", *self.slots)]
            changed = [kinds[0], *kinds[2:]]
            _update(self.function, kinds, changed, factor, factor=len(factor), **self._options(group))
        self.post_step()

    def _factor(self) -> list[Var]:
        """What the gradients are multiplied by, if that isn't 1; moves the loss's scale."""
        max_norm, self._max_norm = self._max_norm, 0.0
        if not max_norm and self.loss_scale is None:
            return []
        gradients = [
            gradient
            for group in self.param_groups
            for weight, gradient in zip(group["params"], group["grads"], strict=True)
            if not weight.is_stop_grad()
        ]
        _, factor, *scale = measure(gradients, [len(gradients)], max_norm, self.loss_scale)
        if self.loss_scale:
            self.loss_scale.state.update(scale[0])
        return [factor]

    def _options(self, group: dict[str, Any]) -> dict[str, float]:
        """Options of `function`."""
        raise NotImplementedError


class Sgd(_OnKernels, jt.optim.SGD):
    """Stochastic gradient descent, without dampening."""

    function, slots = "optimizer_sgd", ("values",)

    def _options(self, group: dict[str, Any]) -> dict[str, float]:
        names = {"lr": "lr", "momentum": "momentum", "decay": "weight_decay", "nesterov": "nesterov"}
        return {key: group.get(name, getattr(self, name)) for key, name in names.items()}


class Adam(_OnKernels, jt.optim.Adam):
    """Adam; weight decay is part of the gradient."""

    function, slots = "optimizer_adam", ("values", "m")

    def _options(self, group: dict[str, Any]) -> dict[str, float]:
        lr, eps, decay, (keep1, keep2) = _settings(self, group)
        rate = lr * math.sqrt(1 - keep2**self.n_step) / (1 - keep1**self.n_step)
        return {"keep1": keep1, "keep2": keep2, "eps": eps, "decay": decay, "shrink": 1, "rate": rate, "root": 1}


class AdamW(_OnKernels, jt.optim.AdamW):
    """Adam whose weight decay is apart from the gradient."""

    function, slots = "optimizer_adam", ("values", "m")

    def _options(self, group: dict[str, Any]) -> dict[str, float]:
        lr, eps, decay, (keep1, keep2) = _settings(self, group)
        rate, root = lr / (1 - keep1**self.n_step), 1 / math.sqrt(1 - keep2**self.n_step)
        options = {"keep1": keep1, "keep2": keep2, "eps": eps, "decay": 0}
        return options | {"shrink": 1 - lr * decay, "rate": rate, "root": root}


def _settings(optimizer: Any, group: dict[str, Any]) -> list[Any]:
    return [group.get(name, getattr(optimizer, name)) for name in ("lr", "eps", "weight_decay", "betas")]


def measure(
    gradients: Sequence[Var], ends: Sequence[int], max_norm: float = 0.0, scale: LossScale | None = None
) -> list[Var]:
    """Norms of gradients, and what an update multiplies them by; see `optimizer_factor` in optimizer.cu.

    Args:
        gradients: those of a part of the network together.
        ends: number of gradients up to the end of each part; at most 64.
        max_norm: largest norm that the factor allows; 0 for any.
        scale: that of the loss that the gradients are of; the norms are those without it.

    Returns:
        Norms (1 + parts,) of all and of each part, factor (2,), and with `scale` its next state.
    """
    states = [scale.state] if scale else []
    partial = sum(-(-int(gradient.numel()) // _EACH) for gradient in gradients)
    shapes = [(1 + len(ends),), (2,), *((2,) for _ in states), (partial,)]
    options: dict[str, float] = {f"end{part}": end for part, end in enumerate(ends)}
    options |= {"count": len(gradients), "parts": len(ends), "max_norm": max_norm, "scaled": len(states)}
    outputs = [(shape, "float32") for shape in shapes]
    return kernels.run("optimizer_factor", outputs, [*gradients, *states], **options)[:-1]


def average(averages: Sequence[Var], values: Sequence[Var], keep: float) -> None:
    """Move each average to keep * average + (1 - keep) * value."""
    _update("optimizer_average", [averages, values], [averages], [], keep=keep)


def join(tensors: Sequence[Var]) -> Var:
    """All tensors in one array (T,), each filled up to a multiple of 4 values, which can be anything."""
    total = sum(-(-int(tensor.numel()) // 4) * 4 for tensor in tensors)
    return kernels.run("optimizer_join", [((total,), "float32")], tensors, count=len(tensors))[0]


def split(joined: Var, like: Sequence[Var]) -> list[Var]:
    """The tensors of `join`; `like` has their shapes."""
    return kernels.run("optimizer_split", [(var.shape, "float32") for var in like], [joined], count=len(like))


def _update(
    function: str,
    kinds: Sequence[Sequence[Var]],
    changed: Sequence[Sequence[Var]],
    more: Sequence[Var],
    **options: float,
) -> None:
    """Call a function that takes equally many tensors of each kind, and `more`, and gives new values of `changed`."""
    old = [var for kind in changed for var in kind]
    inputs = [*(var for kind in kinds for var in kind), *more]
    # New variables, as what is still to be computed of this step may need the old values.
    new = kernels.run(function, [(var.shape, "float32") for var in old], inputs, count=len(kinds[0]), **options)
    for var, value in zip(old, new, strict=True):
        var.update(value)
