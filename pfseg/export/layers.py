"""Layers and operators of `pfseg.ops` in ONNX. Shapes: maps (C, H, W), without the batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pfseg.export.graph import Graph, Translator, Value
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import AdaptiveAvgPool, ChannelDropout
from pfseg.ops.resampling import pool_matrix
from pfseg.runtime import jt

nn = jt.nn


def convolution(graph: Graph, module: Any, x: Value) -> Value:
    """A convolution, with the ReLU that folding may have left in it."""
    weight, pads, strides, dilations = module.weight.numpy(), module.padding, module.stride, module.dilation
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
    nn.ReLU: _relu,
    AdaptiveAvgPool: lambda graph, module, x: adaptive_average(graph, x, module.out, module.rule),
}
