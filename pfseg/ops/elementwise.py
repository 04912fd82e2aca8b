"""GELU, and shortcuts to which a scaled branch is added: one pass over memory each, on every device."""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var


class _Gelu(Function):
    def __init__(self) -> None:
        self.run = kernels.run if kernels.active() else kernels.run_on_cpu

    def execute(self, x: Var) -> Var:
        self.x = x
        return self.run("elementwise_gelu", [(x.shape, x.dtype)], [x])[0]

    def grad(self, upstream: Var) -> Var:
        return self.run("elementwise_gelu_gradient", [(self.x.shape, self.x.dtype)], [self.x, upstream])[0]


def gelu(x: Var) -> Var:
    """X times the normal distribution function of x (the exact GELU, to 3e-7 of x), for arrays of any shape."""
    given, back = (x, None) if kernels.active() or not maps.is_last() else maps.enter_or_leave(x)
    y: Var = _Gelu()(given)
    return back(y) if back else y


class _ScaledAdd(Function):
    def __init__(self) -> None:
        self.run = kernels.run if kernels.active() else kernels.run_on_cpu

    def execute(self, x: Var, y: Var, scale: Var) -> Var:
        self.y, self.scale = y, scale
        return self.run("elementwise_scaled_add", [(x.shape, x.dtype)], [x, y, scale])[0]

    def grad(self, upstream: Var) -> tuple[Var, Var, Var]:
        y, scale = self.y, self.scale
        outputs = [(y.shape, y.dtype), (scale.shape, "float32")]
        y_grad, scale_grad = self.run("elementwise_scaled_add_gradient", outputs, [upstream, y, scale])
        return upstream, y_grad, scale_grad


def scaled_add(x: Var, y: Var, scale: Var) -> Var:
    """Maps x + scale * y, the scale (N, C) float32."""
    x, back = maps.enter_or_leave(x)
    y, _ = maps.enter_or_leave(y)
    return back(_ScaledAdd()(x, y, scale))
