"""Layer normalisation of each position's channels (Ba et al., 2016); the variance is the biased one around the mean."""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


class _Layer(Function):
    """Over the channels of x (N, C, H, W), on a GPU (N, H, W, C)."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.on_gpu = kernels.active()
        self.run = kernels.run if self.on_gpu else kernels.run_on_cpu

    def execute(self, x: Var, weight: Var, bias: Var) -> Var:
        n, *sides = x.shape
        plane = ((n, *(sides[:2] if self.on_gpu else sides[1:])), "float32")
        outputs = [(x.shape, x.dtype), plane, plane]
        y, *statistics = self.run("normalisation_layer", outputs, [x, weight, bias], eps=self.eps)
        self.inputs = [weight, *statistics]
        self.x = x
        return y

    def grad(self, upstream: Var) -> tuple[Var, ...]:
        channels = self.inputs[0].shape
        outputs = [(self.x.shape, self.x.dtype), (channels, "float32"), (channels, "float32")]
        if self.on_gpu:
            outputs.append(((1024 * channels[0],), "float32"))  # scratch as for BatchNorm
        gradients = self.run("normalisation_layer_gradient", outputs, [self.x, upstream, *self.inputs])
        return tuple(gradients[:3])


class LayerNorm2d(jt.nn.Module):
    """Normalisation over the channels of each position of maps."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x: Var) -> Var:
        """Normalise maps."""
        given, back = maps.enter_or_leave(x)
        return back(_Layer(self.eps)(given, self.weight, self.bias))
