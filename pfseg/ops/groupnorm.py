"""Group normalisation: each image's channels in groups, by the moments of the group (Wu and He, ECCV 2018)."""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


class _Groups(Function):
    """Over groups of channels of x (N, C, H, W), on a GPU (N, H, W, C)."""

    def __init__(self, groups: int, eps: float, relu: bool) -> None:
        self.groups, self.eps, self.relu = groups, eps, relu
        self.run = kernels.run if kernels.active() else kernels.run_on_cpu

    def execute(self, x: Var, weight: Var, bias: Var) -> Var:
        statistics = ((x.shape[0], self.groups), "float32")
        outputs, inputs = [(x.shape, x.dtype), statistics, statistics], [x, weight, bias]
        y, *found = self.run("normalisation_group", outputs, inputs, eps=self.eps, relu=self.relu)
        self.x, self.inputs = x, [weight, bias, *found]
        return y

    def grad(self, upstream: Var) -> tuple[Var, Var, Var]:
        x = self.x
        sums = ((x.shape[0], self.inputs[0].shape[0]), "float32")  # what each sample adds
        outputs, inputs = [(x.shape, x.dtype), sums, sums], [x, upstream, *self.inputs]
        gradient, weight, bias = self.run("normalisation_group_gradient", outputs, inputs, relu=self.relu)
        return gradient, weight.sum(0), bias.sum(0)


class GroupNorm(jt.nn.Module):
    """Group normalisation of maps, followed by a ReLU with `relu`; ValueError if the groups can't be equally large.

    Attributes:
        weight, bias: (C,) float32.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5, relu: bool = False) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels can't be split into {groups} groups: use a multiple of {groups}")
        self.groups, self.eps, self.relu = groups, eps, relu
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x: Var) -> Var:
        """Normalise maps."""
        given, back = maps.enter_or_leave(x)
        return back(_Groups(self.groups, self.eps, self.relu)(given, self.weight, self.bias))
