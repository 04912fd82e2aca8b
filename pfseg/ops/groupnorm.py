"""Group normalisation: each image's channels in groups, by the moments of the group (Wu and He, ECCV 2018)."""

from __future__ import annotations

from pfseg.ops import kernels
from pfseg.ops.batchnorm import Normalise
from pfseg.runtime import Var, jt


class GroupNorm(jt.nn.Module):
    """Group normalisation of (N, C, H, W) float32, followed by a ReLU with `relu`.

    Attributes:
        weight, bias: (C,) float32.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5, relu: bool = False) -> None:
        super().__init__()
        self.groups, self.eps, self.relu = groups, eps, relu
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x: Var) -> Var:
        """Normalise (N, C, H, W)."""
        n, c, height, width = x.shape
        grouped = x.reshape(1, n * self.groups, c // self.groups * height, width)
        if kernels.active():
            centred = grouped - grouped.mean([2, 3], keepdims=True)
            normalised = centred / jt.sqrt((centred * centred).mean([2, 3], keepdims=True) + self.eps)
        else:
            ones, zeros = jt.ones((n * self.groups,)), jt.zeros((n * self.groups,))
            normalised = Normalise(self.eps, relu=False, sync=False)(grouped, ones, zeros)[0]
        y: Var = normalised.reshape(x.shape)
        y = y * self.weight.broadcast(y, [0, 2, 3]) + self.bias.broadcast(y, [0, 2, 3])
        return jt.maximum(y, 0.0) if self.relu else y
