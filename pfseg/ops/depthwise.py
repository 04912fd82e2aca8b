"""Depthwise convolutions: own loops on a CPU (`cpu/depthwise.cc`), own kernels on a GPU (`cuda/depthwise.cu`)."""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


class _Depthwise(Function):
    """The convolution of x (N, C, H, W), on a GPU (N, H, W, C), and the gradients of x, weight and bias."""

    def __init__(self, dilation: tuple[int, int]) -> None:
        self.options = {"dilation0": dilation[0], "dilation1": dilation[1]}
        self.run = kernels.run if kernels.active() else kernels.run_on_cpu

    def execute(self, x: Var, weight: Var, bias: Var | None) -> Var:
        self.x, self.weight, self.bias = x, weight, bias
        inputs = [x, weight] if bias is None else [x, weight, bias]
        options = self.options | {"bias": bias is not None}
        return self.run("depthwise_forward", [(x.shape, x.dtype)], inputs, **options)[0]

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None]:
        x, weight = self.x, self.weight
        (x_grad,) = self.run("depthwise_gradient_x", [(x.shape, x.dtype)], [upstream, weight], **self.options)
        outputs: list[kernels.Output] = [(weight.shape, "float32"), ((weight.shape[0],), "float32")]
        if kernels.active():
            outputs.append(((1024 * weight.shape[0],), "float32"))  # scratch as for BatchNorm
        weight_grad, bias_grad, *_ = self.run("depthwise_gradient_w", outputs, [upstream, x], **self.options)
        return x_grad, weight_grad, None if self.bias is None else bias_grad


class DepthwiseConv2d(jt.nn.Conv):
    """A convolution of each channel by its own kernel, stride 1, padded such that maps keep their size.

    Attributes:
        weight: (C, 1, h, w) float32; ValueError if h or w is even.
    """

    def __init__(self, channels: int, kernel_size: int | tuple[int, int], dilation: int = 1, bias: bool = True) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"a depthwise kernel of {height}x{width} has no middle: give odd sides")
        padding = (dilation * (height // 2), dilation * (width // 2))
        super().__init__(
            channels, channels, (height, width), padding=padding, dilation=dilation, groups=channels, bias=bias
        )

    def execute(self, x: Var) -> Var:
        """Convolve maps."""
        channels = self.weight.shape[0]
        if maps.channels(x) != channels:
            raise ValueError(f"got {maps.channels(x)} channels, but the convolution's weights are for {channels}")
        given, back = maps.enter_or_leave(x)
        return back(_Depthwise(self.dilation)(given, self.weight, self.bias))
