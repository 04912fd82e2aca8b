"""Convolutions of maps (N, H, W, C) bfloat16 on a CPU (`cpu/convolution_last.cc`), (N, H', W', K) the result.

Factors are bfloat16 where the processor multiplies such, else float32. Without AMX, products of bfloat16 are twice as
fast as those of float32, and Winograd's F(4x4, 3x3) in float32 takes a quarter of them: it wins for many channels.
Weights, their gradients, and all sums are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pfseg.ops import kernels
from pfseg.ops.function import Function
from pfseg.ops.geometry import geometry, result_sides
from pfseg.runtime import Var

_MIN_CHANNELS, _MIN_TILES = 128, 128  # for Winograd; measured on two cores with AVX-512


@cache
def _processor() -> frozenset[str]:
    """What the processor can do, in the words of Linux; empty on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


class ConvolutionLast(Function):
    """A convolution and its gradients by x, weight (K, C, h, w) float32 and bias."""

    def __init__(self, module: Any) -> None:  # a `Conv2d`, which imports this module
        self.relu, self.float_output = module.relu, module.float_output
        self.stride, self.padding, self.dilation = module.stride, module.padding, module.dilation

    def execute(self, x: Var, weight: Var, bias: Var | None) -> Var:
        """Convolve x (N, H, W, C); ValueError for other channels than those of the weights."""
        n, *sides, c = x.shape
        k, weight_c, *kernel = weight.shape
        if c != weight_c:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight_c}")
        y_shape = (n, *result_sides(sides, kernel, self.stride, self.padding, self.dilation), k)
        self.options = geometry(self.stride, self.padding, self.dilation) | self._method(x, weight, y_shape)
        self.scratch = _scratch(x.shape, weight.shape, y_shape, self.options)
        self.x, self.weight, self.bias = x, weight, bias
        dtype = "float32" if self.float_output else str(x.dtype)
        inputs = [x, weight] if bias is None else [x, weight, bias]
        flags = {"bias": bias is not None, "relu": self.relu}
        return self._run("forward", (y_shape, dtype), inputs, **flags)

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None]:
        """Gradients of x, weight and bias."""
        x, weight = self.x, self.weight
        bias = None
        if self.bias is not None:
            (bias,) = kernels.run("convolution_gradient_bias", [(self.bias.shape, "float32")], [upstream])
        x_gradient = self._run("gradient_x", (x.shape, str(x.dtype)), [upstream, weight])
        return x_gradient, self._run("gradient_w", (weight.shape, "float32"), [upstream, x]), bias

    def _run(self, function: str, output: kernels.Output, inputs: list[Var], **flags: float) -> Var:
        outputs = [output, ((self.scratch,), "float32")]
        return kernels.run(f"convolution_{function}", outputs, inputs, **self.options, **flags)[0]

    def _method(self, x: Var, weight: Var, y: Sequence[int]) -> dict[str, float]:
        """Options `wide`, factors of float32, and `winograd`."""
        tiles = y[0] * math.prod(-(-side // 4) for side in y[1:3])
        plain = self.stride == self.dilation == (1, 1) and weight.shape[2:] == [3, 3]
        many = min(weight.shape[:2]) >= _MIN_CHANNELS and tiles >= _MIN_TILES
        amx = "amx_bf16" in _processor()
        winograd = plain and many and not amx and "avx512f" in _processor()
        narrow = str(x.dtype) == "bfloat16" and not self.float_output and (amx or "avx512_bf16" in _processor())
        return {"winograd": winograd, "wide": winograd or not narrow}


def _scratch(x: Sequence[int], w: Sequence[int], y: Sequence[int], options: dict[str, float]) -> int:
    """Floats that copies of all three take in oneDNN's layouts: channels in blocks of 16, Winograd's 6x6 weights."""

    def blocks(channels: int) -> int:
        return -(-channels // 16) * 16

    taps = 36 if options["winograd"] else w[2] * w[3]
    maps = sum(math.prod(shape[:3]) * blocks(shape[3]) for shape in (x, y)) if options["wide"] else 0
    return maps + blocks(w[0]) * blocks(w[1]) * taps + 64
