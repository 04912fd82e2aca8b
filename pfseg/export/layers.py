"""Layers and operators of `pfseg.ops` in ONNX. Shapes: maps (C, H, W), without the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pfseg.export.graph import Graph, Translator, Value
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.groupnorm import GroupNorm
from pfseg.ops.layernorm import LayerNorm2d
from pfseg.ops.layers import AdaptiveAvgPool, ChannelDropout, ConvModule, ScaledShortcut
from pfseg.ops.resampling import pool_matrix
from pfseg.runtime import Var, jt

nn = jt.nn


def convolution(graph: Graph, module: Any, x: Value) -> Value:
    """A convolution, with the ReLU that folding may have left in it."""
    weight, pads, strides, dilations = module.weight.numpy(), module.padding, module.stride, module.dilation
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]  # those of positions' vectors
    sides = [
        (side + 2 * pad - step * (taps - 1) - 1) // stride + 1
        for side, taps, stride, pad, step in zip(x.shape[1:], weight.shape[2:], strides, pads, dilations, strict=True)
    ]
    y = graph.add(
        "Conv",
        x,
        weight,
        *([] if module.bias is None else [module.bias.numpy()]),
        shape=(weight.shape[0], *sides),
        kernel_shape=weight.shape[2:],
        strides=strides,
        pads=[*pads, *pads],
        dilations=dilations,
        group=module.groups,
    )
    return graph.add("Relu", y) if getattr(module, "relu", False) else y


def batch_norm(graph: Graph, module: BatchNorm2d, x: Value) -> Value:
    """What folding has left of a BatchNorm."""
    if not module.folded:
        scale = module.weight.numpy() / np.sqrt(module.running_var.numpy() + module.eps)
        shift = module.bias.numpy() - module.running_mean.numpy() * scale
        x = affine(graph, x, scale, shift)
    return graph.add("Relu", x) if module.relu else x


def affine(graph: Graph, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    """Maps times `scale` plus `shift`, both (C,)."""
    scaled = graph.add("Mul", x, scale.astype(np.float32)[:, None, None])
    return graph.add("Add", scaled, shift.astype(np.float32)[:, None, None])


def sequence(graph: Graph, module: Any, x: Value) -> Value:
    """One module after the other."""
    for part in module.layers.values():
        x = graph.call(part, x)
    return x


def pooling(graph: Graph, module: Any, x: Value) -> Value:
    """Maxima or means of square windows."""
    sides = [
        (side + 2 * pad - size) // stride + 1
        for side, size, stride, pad in zip(x.shape[1:], module.kernel_size, module.stride, module.padding, strict=True)
    ]
    average = {"count_include_pad": int(module.count_include_pad)} if module.op == "mean" else {}
    return graph.add(
        "AveragePool" if module.op == "mean" else "MaxPool",
        x,
        shape=(x.shape[0], *sides),
        kernel_shape=module.kernel_size,
        strides=module.stride,
        pads=[*module.padding, *module.padding],
        **average,
    )


def adaptive_average(graph: Graph, x: Value, out: int, rule: str) -> Value:
    """Adaptive average pooling to (C, out, out): a product with a constant matrix on each side."""
    channels, height, width = x.shape
    rows, columns = pool_matrix(height, out, rule), pool_matrix(width, out, rule)
    y = graph.add("MatMul", x, columns.T, shape=(channels, height, out))
    return graph.add("MatMul", rows, y, shape=(channels, out, out))


def resize(graph: Graph, x: Value, size: Sequence[int], *, align_corners: bool = True) -> Value:
    """Bilinear resize of maps to `size` = (h, w)."""
    if x.shape[1:] == tuple(size):
        return x
    scales = [1.0, 1.0, *(_factor(side, out) for side, out in zip(x.shape[1:], size, strict=True))]
    return graph.add(
        "Resize",
        x,
        np.empty(0, np.float32),  # the region of interest, which this mode doesn't have
        np.array(scales, np.float32),
        shape=(x.shape[0], *size),
        mode="linear",
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
    )


def _factor(side: int, out: int) -> np.float32:
    """The factor in float32 that a side becomes `out` by: ONNX rounds their product down."""
    factor = np.float32(out / side)
    while float(factor) * side < out:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


def concat(graph: Graph, parts: Sequence[Value]) -> Value:
    """Maps of one size, their channels behind each other."""
    channels = sum(part.shape[0] for part in parts)
    return graph.add("Concat", *parts, shape=(channels, *parts[0].shape[1:]), axis=1)


def split_channels(graph: Graph, x: Value, width: int) -> list[Value]:
    """Maps of `width` channels each."""
    count = x.shape[0] // width
    sizes = np.full(count, width, np.int64)
    return graph.add_many("Split", [x, sizes], [(width, *x.shape[1:])] * count, axis=1)


def add_relu(graph: Graph, a: Value, b: Value) -> Value:
    """max(a + b, 0)."""
    return graph.add("Relu", graph.add("Add", a, b))


def group_norm(graph: Graph, module: GroupNorm, x: Value) -> Value:
    """Normalisation by the moments of groups of channels."""
    channels, height, width = x.shape
    grouped = (module.groups, channels // module.groups * height * width)
    scale, shift = np.ones(module.groups, np.float32), np.zeros(module.groups, np.float32)
    y = graph.add("InstanceNormalization", reshape(graph, x, grouped), scale, shift, epsilon=module.eps)
    y = affine(graph, reshape(graph, y, x.shape), module.weight.numpy(), module.bias.numpy())
    return graph.add("Relu", y) if module.relu else y


def layer_norm(graph: Graph, module: LayerNorm2d, x: Value) -> Value:
    """Normalisation over the channels of each position."""
    plane = (1, *x.shape[1:])
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, shape=plane, axes=[1]))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), shape=plane, axes=[1])
    raised = graph.add("Add", variance, np.full((1, 1, 1, 1), module.eps, np.float32))
    y = graph.add("Div", centred, graph.add("Sqrt", raised))
    return affine(graph, y, module.weight.numpy(), module.bias.numpy())


def gelu(graph: Graph, x: Value) -> Value:
    """The exact GELU."""
    half, one, root = (np.full((1, 1, 1, 1), value, np.float32) for value in (0.5, 1.0, 2**0.5))
    raised = graph.add("Add", graph.add("Erf", graph.add("Div", x, root)), one)
    return graph.add("Mul", graph.add("Mul", x, raised), half)


def conv_module(graph: Graph, module: ConvModule, x: Value) -> Value:
    """Convolution, BatchNorm and ReLU."""
    y: Value = graph.call(module.bn, graph.call(module.conv, x))
    return y


def scaled_shortcut(graph: Graph, _module: ScaledShortcut, x: Value, y: Value, scale: Var) -> Value:
    """X + scale * y."""
    return graph.add("Add", x, graph.add("Mul", y, scale.numpy().reshape(-1, 1, 1)))


def resize_nearest(graph: Graph, x: Value, size: Sequence[int]) -> Value:
    """Maps resized to `size` = (h, w): position i of a side takes floor(i * old / new)."""
    for axis, (old, new) in enumerate(zip(x.shape[1:], size, strict=True), 1):
        if old != new:
            shape = (*x.shape[:axis], new, *x.shape[axis + 1 :])
            x = graph.add("Gather", x, np.arange(new) * old // new, shape=shape, axis=axis + 1)
    return x


def reshape(graph: Graph, x: Value, shape: Sequence[int]) -> Value:
    """The same values in another shape."""
    return graph.add("Reshape", x, np.array([0, *shape], np.int64), shape=shape)  # 0: the batch axis as it is


def transpose(graph: Graph, x: Value, *axes: int) -> Value:
    """The axes in another order, counted with the batch axis, which stays the first."""
    return graph.add("Transpose", x, shape=[x.shape[axis - 1] for axis in axes], perm=[0, *axes])


def _same(_graph: Graph, _module: Any, x: Value) -> Value:
    return x


def _relu(graph: Graph, _module: Any, x: Value) -> Value:
    return graph.add("Relu", x)


TRANSLATORS: dict[type, Translator] = {
    nn.Conv: convolution,
    BatchNorm2d: batch_norm,
    nn.Sequential: sequence,
    nn.Pool: pooling,
    nn.Identity: _same,
    ChannelDropout: _same,
    ScaledShortcut: scaled_shortcut,
    ConvModule: conv_module,
    GroupNorm: group_norm,
    LayerNorm2d: layer_norm,
    nn.ReLU: _relu,
    AdaptiveAvgPool: lambda graph, module, x: adaptive_average(graph, x, module.out, module.rule),
}
