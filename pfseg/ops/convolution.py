"""Convolutions and batched matrix products: from oneDNN on a CPU (`convolution.h`), from cuDNN and cuBLAS on a GPU.

Jittor would compile a broadcast product and sum for each kernel size and stride before it finds oneDNN's. Here 3x3 ones
of stride 1 go by Winograd's F(4x4, 3x3) where the processor has AVX-512 (results differ from the direct sum by about
2e-6 of the largest value), 1x1 ones are matrix products on the plain layout, and bias and ReLU of a network that only
predicts are part of the pass. Shapes: x (N, C, H, W), weight (K, C, h, w), y (N, K, H', W'), all float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pfseg.ops import header, kernels, maps
from pfseg.runtime import Var, jt, onednn_flags

Pair = tuple[int, int]

# Smaller maps are as fast by the direct sum (measured with 64 to 512 channels on two cores).
_MIN_TILES, _MIN_CHANNELS = 32, 16

_BIAS = "in2_shape0 ? in2_p : nullptr"
_SCRATCH = "{out1_p, size_t(out1_shape0)}"
_PLANES = "in0_shape2 * in0_shape3"


def _call(call: str, shape: Sequence[int], inputs: list[Var], scratch: int = 0, **options: float) -> Var:
    """Run a function of `convolution.h` with so many floats of scratch memory and, in `data`, the options."""
    y, memory = jt.code(
        [tuple(shape), (scratch,)],
        ["float32", "float32"],
        inputs,
        cpu_header=header("convolution"),
        cpu_src=f"pfseg::{call};",
        data={name: float(value) for name, value in options.items()},
    )
    memory.compile_options = onednn_flags()
    return y


class _Convolution(jt.Function):
    """One call's geometry, and the gradients of x, weight and bias."""

    def __init__(self, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def execute(self, x: Var, weight: Var, bias: Var | None, relu: bool) -> Var:
        n, c, *sides = x.shape
        k, weight_c, *kernel = weight.shape
        if c != weight_c:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight_c}")
        y_sides = _sides(sides, kernel, self.stride, self.padding, self.dilation)
        plain = self.stride == self.dilation == (1, 1)
        tiles = n * math.prod(-(-side // 4) for side in y_sides)
        winograd = plain and kernel == [3, 3] and min(c, k) >= _MIN_CHANNELS and tiles >= _MIN_TILES
        self.pointwise = plain and kernel == [1, 1] and self.padding == (0, 0)
        self.options = _geometry(self.stride, self.padding, self.dilation)
        self.options["winograd"] = winograd
        y_shape = [n, k, *y_sides]
        self.scratch = _scratch(x.shape, weight.shape, y_shape, winograd)
        self.x, self.weight, self.bias = x, weight, bias
        inputs = [x, weight, jt.zeros((0,)) if bias is None else bias]
        if self.pointwise:
            sizes = f"in0_shape0, in0_shape1, {_PLANES}, in1_shape0"
            call = f'pointwise_forward({sizes}, in0_p, in1_p, {_BIAS}, data["relu"], out0_p)'
            return _call(call, y_shape, inputs, relu=relu)
        call = (
            "forward({in0->shape, in1->shape, out0->shape, data}, "
            f'in0_p, in1_p, {_BIAS}, data["relu"], out0_p, {_SCRATCH})'
        )
        return _call(call, y_shape, inputs, self.scratch, relu=relu, **self.options)

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None, None]:
        x, weight = self.x, self.weight
        if self.pointwise:
            sizes = f"in0_shape0, in1_shape1, {_PLANES}, in0_shape1"
            x_grad = _call(f"pointwise_gradient_x({sizes}, in0_p, in1_p, out0_p)", x.shape, [upstream, weight])
        else:
            call = f"gradient_x({{out0->shape, in1->shape, in0->shape, data}}, in0_p, in1_p, out0_p, {_SCRATCH})"
            x_grad = _call(call, x.shape, [upstream, weight], self.scratch, **self.options)
        call = f"gradient_w({{in1->shape, out0->shape, in0->shape, data}}, in0_p, in1_p, out0_p, {_SCRATCH})"
        weight_grad = _call(call, weight.shape, [upstream, x], self.scratch, **self.options)
        return x_grad, weight_grad, None if self.bias is None else upstream.sum([0, 2, 3]), None


def _sides(sides: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """(H', W') of the result."""
    axes = zip(sides, kernel, stride, padding, dilation, strict=True)
    return [(side + 2 * pad - step * (taps - 1) - 1) // stride + 1 for side, taps, stride, pad, step in axes]


def _geometry(stride: Pair, padding: Pair, dilation: Pair) -> dict[str, float]:
    """Options of the calls that convolve."""
    pairs = (("stride", stride), ("padding", padding), ("dilation", dilation))
    return {f"{name}{axis}": pair[axis] for name, pair in pairs for axis in (0, 1)}


def _scratch(x: Sequence[int], w: Sequence[int], y: Sequence[int], winograd: bool) -> int:
    """Floats that copies of all three take in oneDNN's layouts: channels in blocks of 16, Winograd's 6x6 weights."""

    def blocks(channels: int) -> int:
        return -(-channels // 16) * 16

    taps = 36 if winograd else w[2] * w[3]
    maps = sum(shape[0] * blocks(shape[1]) * shape[2] * shape[3] for shape in (x, y))
    return maps + blocks(w[0]) * blocks(w[1]) * taps + 64


class _ConvolutionMaps(jt.Function):
    """The same on the GPU kernels: maps (N, H, W, C) to (N, H', W', K), of the maps' type or float32."""

    def __init__(self, stride: Pair, padding: Pair, dilation: Pair, relu: bool, float_output: bool) -> None:
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.relu, self.float_output = relu, float_output

    def execute(self, x: Var, weight: Var, bias: Var | None) -> Var:
        n, *sides, c = x.shape
        k, weight_c, *kernel = weight.shape
        if c != weight_c:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight_c}")
        dtype = str(x.dtype)
        pointwise = kernel == [1, 1] and self.stride == (1, 1) and self.padding == (0, 0)
        converts = self.float_output and dtype != "float32"
        wide = converts and not pointwise
        packed = not pointwise or dtype != "float32"
        self.options = _geometry(self.stride, self.padding, self.dilation)
        self.options |= {"pointwise": pointwise, "tf32": kernels.precision() == "tf32"}
        self.options["deterministic"] = kernels.deterministic()
        # Tensor cores take channels in groups of 8.
        self.rows = -(-k // 8) * 8 if converts else k
        y_shape = (n, *_sides(sides, kernel, self.stride, self.padding, self.dilation))
        outputs: list[kernels.Output] = [((*y_shape, k), "float32" if converts else dtype)]
        if packed:
            outputs.append(((self.rows, *kernel, c), dtype))
        if wide:
            outputs.append(((*y_shape, self.rows), dtype))
        flags = {"bias": bias is not None, "relu": self.relu, "packed": packed, "wide": wide}
        inputs = [x, weight] if bias is None else [x, weight, bias]
        y, *more = kernels.run("convolution_forward", outputs, inputs, **self.options, **flags)
        self.x, self.packed, self.weight_shape, self.bias = x, more[0] if packed else weight, weight.shape, bias
        return y

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None]:
        x, dtype = self.x, str(self.x.dtype)
        bias_grad = None
        if self.bias is not None:
            k = upstream.shape[3]
            scratch = 1024 * k + 1024  # as for BatchNorm
            outputs: list[kernels.Output] = [((k,), "float32"), ((scratch,), "float32")]
            bias_grad = kernels.run("convolution_gradient_bias", outputs, [upstream])[0]
        if upstream.dtype != dtype:
            (upstream,) = kernels.run("convolution_widen", [((*upstream.shape[:3], self.rows), dtype)], [upstream])
        (x_grad,) = kernels.run("convolution_gradient_x", [(x.shape, dtype)], [upstream, self.packed], **self.options)
        outputs = [(self.weight_shape, "float32")]
        if not self.options["pointwise"]:
            outputs.append((self.packed.shape, dtype))
        weight_grad = kernels.run("convolution_gradient_w", outputs, [upstream, x], **self.options)[0]
        return x_grad, weight_grad, bias_grad


class Conv2d(jt.nn.Conv):
    """`jittor.nn.Conv` without groups by oneDNN on a CPU, by cuDNN and cuBLAS on a GPU.

    With `relu`, for prediction alone, a ReLU is part of the pass.
    """

    relu = float_output = False

    def execute(self, x: Var) -> Var:
        """Convolve (N, C, H, W) float32, or maps within `maps.channels_last()`."""
        if kernels.active():
            x, back = maps.enter(x)
            convolution = _ConvolutionMaps(self.stride, self.padding, self.dilation, self.relu, self.float_output)
            return back(convolution(x, self.weight, self.bias))
        y: Var = _Convolution(self.stride, self.padding, self.dilation)(x, self.weight, self.bias, self.relu)
        return y


class FloatConv2d(Conv2d):
    """A `Conv2d` that gives float32 whatever the maps' type, as for logits."""

    float_output = True


class _Matmul(jt.Function):
    def execute(self, a: Var, b: Var) -> Var:
        self.a, self.b = a, b
        return _product(a, b)

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        return _product(upstream, self.b, b_transposed=True), _product(self.a, upstream, a_transposed=True)


def _product(a: Var, b: Var, a_transposed: bool = False, b_transposed: bool = False) -> Var:
    """The product (N, P, R) of a and b; either may be stored with its last two axes swapped."""
    shape = (a.shape[0], a.shape[2 if a_transposed else 1], b.shape[1 if b_transposed else 2])
    inner = "in0_shape1" if a_transposed else "in0_shape2"
    sizes = f"out0_shape0, out0_shape1, {inner}, out0_shape2"
    flags = [str(flag).lower() for flag in (a_transposed, b_transposed)]
    return _call(f"multiply({sizes}, in0_p, {flags[0]}, in1_p, {flags[1]}, out0_p)", shape, [a, b])


def batched_matmul(a: Var, b: Var) -> Var:
    """Product (N, P, R) of (N, P, Q) and (N, Q, R), float32."""
    if jt.flags.use_cuda:
        return jt.nn.bmm(a, b)
    product: Var = _Matmul.apply(a, b)
    return product
