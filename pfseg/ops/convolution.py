"""Convolutions: oneDNN's on a CPU (`cpu/convolution.cc`), cuDNN's and cuBLAS's on a GPU; batched products on a CPU.

Jittor would compile a broadcast product and sum for each kernel size and stride before it finds oneDNN's. Here 3x3 ones
of stride 1 go by Winograd's F(4x4, 3x3) where the processor has AVX-512 (results differ from the direct sum by about
2e-6 of the largest value), 1x1 ones are matrix products on the plain layout, and bias and ReLU of a network that only
predicts are part of the pass. Shapes: x (N, C, H, W), weight (K, C, h, w), y (N, K, H', W'), all float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from pfseg.ops import kernels, maps
from pfseg.ops.convolution_last import ConvolutionLast
from pfseg.ops.function import Function
from pfseg.ops.geometry import Pair, geometry, result_sides
from pfseg.runtime import Var, jt

# Smaller maps are as fast by the direct sum (measured with 64 to 512 channels on two cores).
_MIN_TILES, _MIN_CHANNELS = 32, 16


def _run(function: str, shape: Sequence[int], inputs: list[Var], scratch: int = 0, **options: float) -> Var:
    """Run a function of `cpu/convolution.cc`, with so many floats of scratch memory."""
    outputs: list[kernels.Output] = [(shape, "float32"), *([((scratch,), "float32")] if scratch else [])]
    return kernels.run_on_cpu(f"convolution_{function}", outputs, inputs, **options)[0]


class _Convolution(Function):
    """One call's geometry, and the gradients of x, weight and bias."""

    def __init__(self, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def execute(self, x: Var, weight: Var, bias: Var | None, relu: bool) -> Var:
        n, c, *sides = x.shape
        k, weight_c, *kernel = weight.shape
        if c != weight_c:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight_c}")
        y_sides = result_sides(sides, kernel, self.stride, self.padding, self.dilation)
        plain = self.stride == self.dilation == (1, 1)
        tiles = n * math.prod(-(-side // 4) for side in y_sides)
        winograd = plain and kernel == [3, 3] and min(c, k) >= _MIN_CHANNELS and tiles >= _MIN_TILES
        self.pointwise = plain and kernel == [1, 1] and self.padding == (0, 0)
        self.options = geometry(self.stride, self.padding, self.dilation)
        self.options["winograd"] = winograd
        y_shape = [n, k, *y_sides]
        self.scratch = _scratch(x.shape, weight.shape, y_shape, winograd)
        self.x, self.weight, self.bias = x, weight, bias
        inputs = [x, weight] if bias is None else [x, weight, bias]
        flags = {"bias": bias is not None, "relu": relu}
        if self.pointwise:
            return _run("pointwise_forward", y_shape, inputs, **flags)
        return _run("forward", y_shape, inputs, self.scratch, **flags, **self.options)

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None, None]:
        x, weight = self.x, self.weight
        if self.pointwise:
            x_grad = _run("pointwise_gradient_x", x.shape, [upstream, weight])
        else:
            x_grad = _run("gradient_x", x.shape, [upstream, weight], self.scratch, **self.options)
        weight_grad = _run("gradient_w", weight.shape, [upstream, x], self.scratch, **self.options)
        return x_grad, weight_grad, None if self.bias is None else upstream.sum([0, 2, 3]), None


def _scratch(x: Sequence[int], w: Sequence[int], y: Sequence[int], winograd: bool) -> int:
    """Floats that copies of all three take in oneDNN's layouts: channels in blocks of 16, Winograd's 6x6 weights."""

    def blocks(channels: int) -> int:
        return -(-channels // 16) * 16

    taps = 36 if winograd else w[2] * w[3]
    maps = sum(shape[0] * blocks(shape[1]) * shape[2] * shape[3] for shape in (x, y))
    return maps + blocks(w[0]) * blocks(w[1]) * taps + 64


class _Pack(Function):
    """Weights (K, C, h, w) float32 as the GPU kernels take them, (K', h, w, C) of a type, all by one launch.

    So are the gradients by the packed ones, which come back as (K, C, h, w).
    """

    def __init__(self, rows: Sequence[int], dtype: str) -> None:
        self.rows, self.dtype = rows, dtype

    def execute(self, *weights: Var) -> list[Var]:
        self.shapes = [weight.shape for weight in weights]
        outputs = [((k, h, w, c), self.dtype) for k, (_, c, h, w) in zip(self.rows, self.shapes, strict=True)]
        return kernels.run("convolution_pack", outputs, weights, count=len(weights))

    def grad(self, *upstream: Var | None) -> list[Var | None]:
        given = [(shape, g) for shape, g in zip(self.shapes, upstream, strict=True) if g is not None]
        outputs = [(shape, "float32") for shape, _ in given]
        gradients = iter(kernels.run("convolution_unpack", outputs, [g for _, g in given], count=len(given)))
        return [None if g is None else next(gradients) for g in upstream]


class _ConvolutionMaps(Function):
    """The same on the GPU kernels: maps (N, H, W, C) to (N, H', W', K), of the maps' type or float32.

    The weights that it takes, and gives a gradient for, are those of `_Pack`. Only those of a matrix product are
    float32 (K, C, 1, 1), so that their gradient is, too; `packed` is then what it computes with, if not None.
    """

    def __init__(self, module: Conv2d, packed: Var | None) -> None:
        self.stride, self.padding, self.dilation = module.stride, module.padding, module.dilation
        self.relu, self.float_output = module.relu, module.float_output
        self.pointwise, self.shape, self.packed = module.pointwise, module.kernel.shape, packed

    def execute(self, x: Var, weight: Var, bias: Var | None) -> Var:
        n, *sides, c = x.shape
        k, weight_c, *kernel = self.shape
        if c != weight_c:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight_c}")
        dtype = str(x.dtype)
        converts = self.float_output and dtype != "float32"
        wide = converts and not self.pointwise
        self.options = geometry(self.stride, self.padding, self.dilation)
        self.options |= {"pointwise": self.pointwise, "tf32": kernels.precision() == "tf32"}
        self.options["deterministic"] = kernels.deterministic()
        self.x, self.bias = x, bias
        self.weight = weight if self.packed is None else self.packed
        self.rows = self.weight.shape[0]
        y_shape = (n, *result_sides(sides, kernel, self.stride, self.padding, self.dilation))
        outputs: list[kernels.Output] = [((*y_shape, k), "float32" if converts else dtype)]
        if wide:
            outputs.append(((*y_shape, self.rows), dtype))
        flags = {"bias": bias is not None, "relu": self.relu, "wide": wide}
        inputs = [x, self.weight] if bias is None else [x, self.weight, bias]
        y: Var = kernels.run("convolution_forward", outputs, inputs, **self.options, **flags)[0]
        return y

    def grad(self, upstream: Var) -> tuple[Var, Var, Var | None]:
        x, dtype = self.x, str(self.x.dtype)
        bias_grad = None
        if self.bias is not None:
            k = upstream.shape[3]
            outputs: list[kernels.Output] = [((k,), "float32"), ((1024 * k,), "float32")]  # scratch as for BatchNorm
            bias_grad = kernels.run("convolution_gradient_bias", outputs, [upstream])[0]
        if upstream.dtype != dtype:
            (upstream,) = kernels.run("convolution_widen", [((*upstream.shape[:3], self.rows), dtype)], [upstream])
        (x_grad,) = kernels.run("convolution_gradient_x", [(x.shape, dtype)], [upstream, self.weight], **self.options)
        outputs = [(self.shape, "float32") if self.pointwise else (self.weight.shape, dtype)]
        (weight_grad,) = kernels.run("convolution_gradient_w", outputs, [upstream, x], **self.options)
        return x_grad, weight_grad, bias_grad


class Conv2d(jt.nn.Conv):
    """`jittor.nn.Conv` without groups by oneDNN on a CPU, by cuDNN and cuBLAS on a GPU.

    With `relu`, for prediction alone, a ReLU is part of the pass.
    """

    relu = float_output = False
    _packed: Var | None = None  # within `PackedWeights.of`

    def execute(self, x: Var) -> Var:
        """Convolve (N, C, H, W) float32, or maps within `maps.channels_last()`."""
        if kernels.maps_last():
            x, back = maps.enter(x)
            if not kernels.active():
                return back(ConvolutionLast(self)(x, self.kernel, self.bias))
            packed = self._packed
            if packed is None and self.packs:
                (packed,) = _pack([self])
            weight = packed if packed is not None and not self.pointwise else self.kernel
            return back(_ConvolutionMaps(self, packed)(x, weight, self.bias))
        y: Var = _Convolution(self.stride, self.padding, self.dilation)(x, self.kernel, self.bias, self.relu)
        return y

    @property
    def kernel(self) -> Var:
        """The weights as (K, C, h, w)."""
        return self.weight

    @property
    def pointwise(self) -> bool:
        """Whether it is a matrix product."""
        return bool(self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0))

    @property
    def packs(self) -> bool:
        """Whether the GPU kernels take the weights packed: all but those of matrix products of float32."""
        return not self.pointwise or kernels.dtype() != "float32"

    @property
    def rows(self) -> int:
        """K' of the packed weights: tensor cores take channels in groups of 8."""
        k = int(self.weight.shape[0])
        return -(-k // 8) * 8 if self.float_output and kernels.dtype() != "float32" else k


def _pack(convolutions: Sequence[Conv2d]) -> list[Var]:
    """Packed weights of convolutions; gradients flow through those that learn, except of matrix products.

    Those give their gradient to the float32 weights, which then must not get None from here: Jittor 1.3.11 would let
    that replace the gradient.
    """
    packed: dict[int, Var] = {}

    def learns(c: Conv2d) -> bool:
        return not (jt.flags.no_grad or c.pointwise or c.weight.is_stop_grad())

    for learning, context in ((True, nullcontext()), (False, jt.no_grad())):
        parts = [c for c in convolutions if learns(c) == learning]
        if parts:
            with context:
                pack = _Pack([c.rows for c in parts], kernels.dtype())
                packed |= zip(map(id, parts), pack(*(c.kernel for c in parts)), strict=True)
    return [packed[id(c)] for c in convolutions]


class PackedWeights:
    """The packed weights of all convolutions of a module, for the GPU kernels.

    Packed one by one they would take a launch each. Without gradients they are kept, until a weight is another one or
    the type of the maps is.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._kept: list[Var] = []

    @contextmanager
    def of(self, module: jt.nn.Module) -> Iterator[None]:
        """Let the module's convolutions use them."""
        if not kernels.active():
            yield
            return
        convolutions = [part for part in module.modules() if isinstance(part, Conv2d) and part.packs]
        for convolution, packed in zip(convolutions, self._pack(convolutions), strict=True):
            convolution._packed = packed
        try:
            yield
        finally:
            for convolution in convolutions:
                vars(convolution).pop("_packed", None)

    def _pack(self, convolutions: Sequence[Conv2d]) -> list[Var]:
        if not jt.flags.no_grad:
            self._key, self._kept = (), []
            return _pack(convolutions)
        key = (kernels.dtype(), *((c.rows, c.weight.id) for c in convolutions))
        if key != self._key:
            self._key, self._kept = key, _pack(convolutions)
        return self._kept


class FloatConv2d(Conv2d):
    """A `Conv2d` that gives float32 whatever the maps' type, as for logits."""

    float_output = True


class PointConv(jt.nn.Conv):
    """1x1 convolution of points (N, C, P) float32, with weights (K, C, 1), followed by a ReLU with `relu`."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.weight = self.weight.reshape(out_channels, in_channels, 1)
        self.relu = relu

    def execute(self, x: Var) -> Var:
        """Map points (N, C, P) to (N, K, P)."""
        y: Var
        if not kernels.active():
            weight = self.weight.unsqueeze(3)
            y = _Convolution((1, 1), (0, 0), (1, 1))(x.unsqueeze(2), weight, self.bias, False).squeeze(2)
        else:
            weight = self.weight.squeeze(2).broadcast([x.shape[0], *self.weight.shape[:2]], [0])
            y = jt.nn.bmm(weight, x)
            if self.bias is not None:
                y = y + self.bias.broadcast(y, [0, 2])
        return jt.maximum(y, 0.0) if self.relu else y


class Linear(Conv2d):
    """A 1x1 convolution whose weights are (K, C), as those of a layer of positions' vectors."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.weight = self.weight.reshape(out_channels, in_channels)

    @property
    def kernel(self) -> Var:
        """The weights as (K, C, 1, 1)."""
        return self.weight.reshape(*self.weight.shape, 1, 1)


class _Matmul(Function):
    def execute(self, a: Var, b: Var) -> Var:
        self.a, self.b = a, b
        return _product(a, b)

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        return _product(upstream, self.b, b_transposed=True), _product(self.a, upstream, a_transposed=True)


def _product(a: Var, b: Var, a_transposed: bool = False, b_transposed: bool = False) -> Var:
    """The product (N, P, R) of a and b; either may be stored with its last two axes swapped."""
    shape = (a.shape[0], a.shape[2 if a_transposed else 1], b.shape[1 if b_transposed else 2])
    return _run("multiply", shape, [a, b], a_transposed=a_transposed, b_transposed=b_transposed)


def batched_matmul(a: Var, b: Var) -> Var:
    """Product (N, P, R) of (N, P, Q) and (N, Q, R), float32."""
    product: Var = jt.nn.bmm(a, b) if jt.flags.use_cuda else _Matmul.apply(a, b)
    return product


class Product(jt.nn.Module):
    """`batched_matmul` as a part of a network, so that what it costs is counted."""

    def execute(self, a: Var, b: Var) -> Var:
        """Multiply (N, P, Q) and (N, Q, R)."""
        return batched_matmul(a, b)
