"""Pooling with square windows at a stride: Jittor's on a CPU, own kernels on a GPU."""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


class _Pooled(Function):
    """Pooling of maps (N, H, W, C) on the GPU kernels."""

    def __init__(self, kernel: str, size: int, stride: int, padding: int) -> None:
        self.kernel = kernel
        self.options = {"size": size, "stride": stride, "padding": padding}

    def execute(self, x: Var) -> Var:
        size, stride, padding = self.options.values()
        n, height, width, channels = self.shape = x.shape
        sides = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
        shape = (n, *sides, channels)
        winners = [(shape, "uint8")] if self.kernel == "pool_max" else []
        y, *self.winners = kernels.run(self.kernel, [(shape, x.dtype), *winners], [x], **self.options)
        return y

    def grad(self, upstream: Var) -> Var:
        outputs, inputs = [(self.shape, upstream.dtype)], [upstream, *self.winners]
        return kernels.run(f"{self.kernel}_gradient", outputs, inputs, **self.options)[0]


class MaxPool2d(jt.nn.Pool):
    """Maxima of windows of `size` x `size` (at most 16) positions; the gradient goes to the first of equal values."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__(size, stride=stride, padding=padding, op="maximum")
        self.window = size, stride, padding

    def execute(self, x: Var) -> Var:
        """Pool maps."""
        return _pool("pool_max", self.window, x) if kernels.maps_last() else super().execute(x)


class AvgPool2d(jt.nn.Pool):
    """Means of windows of `size` x `size` positions, of which those of the padding count as 0."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__(size, stride=stride, padding=padding, op="mean", count_include_pad=True)
        self.window = size, stride, padding

    def execute(self, x: Var) -> Var:
        """Pool maps."""
        return _pool("pool_mean", self.window, x) if kernels.maps_last() else super().execute(x)


def _pool(kernel: str, window: tuple[int, int, int], x: Var) -> Var:
    x, back = maps.enter(x)
    return back(_Pooled(kernel, *window)(x))
