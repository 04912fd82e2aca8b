"""Networks and heads of `pfseg.models` in ONNX: each function is what `execute` of its module does in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from pfseg.export.backbones import layered_backbone
from pfseg.export.graph import Graph, Translator, Value
from pfseg.export.layers import adaptive_average, concat, conv_module, reshape, resize, transpose
from pfseg.models import lightham
from pfseg.models.ccnet import CCNetHead, CrissCrossAttention
from pfseg.models.deeplab import DeepLabV3PlusHead, SeparableConv
from pfseg.models.network import LayeredBackbone, SegmentationNetwork
from pfseg.models.pfnet import PFNetHead, PyramidPooling
from pfseg.models.pspnet import PoolingModule, PSPNetHead
from pfseg.models.sfnet import FlowAlign, SFNetHead
from pfseg.models.uperhead import UPerHead
from pfseg.models.upernet import UPerNetHead


def network(graph: Graph, module: SegmentationNetwork, x: Value) -> Value:
    """Logits (K, H, W) of an image."""
    layered = hasattr(module.backbone, "layer4") and type(module.backbone).execute is LayeredBackbone.execute
    features: Any = layered_backbone(graph, module.backbone, x) if layered else graph.call(module.backbone, x)
    logits: Value = graph.call(module.head, features)
    return resize(graph, logits, x.shape[1:], align_corners=getattr(module.head, "align_corners", True))


def add(graph: Graph, parts: Sequence[Value]) -> Value:
    """The sum of maps."""
    return reduce(lambda a, b: graph.add("Add", a, b), parts)


def pyramid_pooling(graph: Graph, module: PyramidPooling, x: Value) -> Value:
    """Context from average pooling at several sizes."""
    pooled = [resize(graph, graph.call(stage, x), x.shape[1:]) for stage in module.stages]
    merged: Value = graph.call(module.bottleneck, concat(graph, [*pooled, x]))
    return merged


def pfnet_head(graph: Graph, module: PFNetHead | SFNetHead, features: Sequence[Value]) -> Value:
    """Pyramid pooling, then flow and fusion down to the finest map, for SFNet too."""
    fused: Value = graph.call(module.ppm, features[-1])
    levels = [fused]
    for i in reversed(range(len(features) - 1)):
        lateral = graph.call(module.fpn_in[i], features[i])
        fused = graph.add("Add", lateral, graph.call(module.fpn_out_align[i], fused, lateral))
        levels.append(graph.call(module.fpn_out[i], fused))
    finest = levels[-1].shape[1:]
    pyramid = concat(graph, [resize(graph, level, finest) for level in reversed(levels)])
    logits: Value = graph.call(module.conv_last, pyramid)
    return logits


def flow_align(graph: Graph, module: FlowAlign, coarse: Value, fine: Value) -> Value:
    """The coarse map at a grid over the fine one, moved by the flow in half sides over the fine map's sides."""
    reduced = resize(graph, graph.call(module.down_h, coarse), fine.shape[1:])
    flow = graph.call(module.flow_make, concat(graph, [reduced, graph.call(module.down_l, fine)]))
    height, width = fine.shape[1:]
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    grid = np.stack(np.meshgrid(columns, rows), -1)[None]
    moved = graph.add("Div", transpose(graph, flow, 2, 3, 1), np.array([width, height], np.float32))
    places = graph.add("Add", moved, grid)
    return graph.add("GridSample", coarse, places, shape=(coarse.shape[0], height, width), align_corners=1)


def pspnet_head(graph: Graph, module: PSPNetHead, features: Sequence[Value]) -> Value:
    """Pyramid pooling and a classifier."""
    logits: Value = graph.call(module.cls, concat(graph, [features[-1], *graph.call(module.ppm, features[-1])]))
    return logits


def pooling_module(graph: Graph, module: PoolingModule, x: Value) -> list[Value]:
    """Average pooling at several sizes."""
    return [
        resize(graph, graph.call(stage, x), x.shape[1:], align_corners=module.align_corners)
        for stage in module.features
    ]


def _wide(graph: Graph, x: Value, like: Value) -> Value:
    return resize(graph, x, like.shape[1:], align_corners=False)


def upernet_head(graph: Graph, module: UPerNetHead, features: Sequence[Value]) -> Value:
    """Pyramid pooling on the coarsest map of a feature pyramid; the pooled maps are convolved at full size."""
    x = features[-1]
    pooled = [x]
    for size, convolve in zip(module.pool_sizes, module.ppm_conv, strict=True):
        pooled.append(graph.call(convolve, _wide(graph, adaptive_average(graph, x, size, "floor_ceil"), x)))
    context = graph.call(module.ppm_last_conv, concat(graph, pooled))
    merged = _top_down(graph, context, features, module.fpn_in, module.fpn_out)
    logits: Value = graph.call(module.conv_last, merged)
    return logits


def uper_head(graph: Graph, module: UPerHead, features: Sequence[Value]) -> Value:
    """The same in mmsegmentation's form."""
    x = features[-1]
    pooled = [_wide(graph, graph.call(part, x), x) for part in module.psp_modules]
    context = graph.call(module.bottleneck, concat(graph, [x, *pooled]))
    merged = _top_down(graph, context, features, module.lateral_convs, module.fpn_convs)
    logits: Value = graph.call(module.conv_seg, graph.call(module.fpn_bottleneck, merged))
    return logits


def _top_down(graph: Graph, context: Value, features: Sequence[Value], inner: Any, outer: Any) -> Value:
    """Sums from coarse to fine, all levels at the finest size behind each other."""
    fused, levels = context, [context]
    for i in reversed(range(len(features) - 1)):
        lateral = graph.call(inner[i], features[i])
        fused = graph.add("Add", lateral, _wide(graph, fused, lateral))
        levels.insert(0, graph.call(outer[i], fused))
    return concat(graph, [_wide(graph, level, fused) for level in levels])


def ccnet_head(graph: Graph, module: CCNetHead, features: Sequence[Value]) -> Value:
    """Criss-cross attention, twice."""
    x = graph.call(module.convs[0], features[-1])
    x = graph.call(module.convs[1], graph.call(module.cca, graph.call(module.cca, x)))
    logits: Value = graph.call(module.conv_seg, graph.call(module.conv_cat, concat(graph, [features[-1], x])))
    return logits


def criss_cross(graph: Graph, module: CrissCrossAttention, x: Value) -> Value:
    """Attention of each pixel to its row and its column."""
    channels, height, width = x.shape
    query, key, value = (graph.call(part, x) for part in (module.query_conv, module.key_conv, module.value_conv))
    columns, rows = (3, 2, 1), (2, 3, 1)  # (w, h, C) and (h, w, C)
    vertical = graph.add(
        "MatMul", transpose(graph, query, *columns), transpose(graph, key, 3, 1, 2), shape=(width, height, height)
    )
    itself = np.where(np.eye(height), -1e30, 0.0).astype(np.float32)  # counts once, in the row
    vertical = transpose(graph, graph.add("Add", vertical, itself), 2, 1, 3)
    horizontal = graph.add(
        "MatMul", transpose(graph, query, *rows), transpose(graph, key, 2, 1, 3), shape=(height, width, width)
    )
    energies = graph.add("Concat", vertical, horizontal, shape=(height, width, height + width), axis=3)
    weights = graph.add("Softmax", energies, axis=3)
    sizes = np.array([height, width], np.int64)
    shapes = [(height, width, height), (height, width, width)]
    down, across = graph.add_many("Split", [weights, sizes], shapes, axis=3)
    down = graph.add(
        "MatMul",
        transpose(graph, down, 2, 1, 3),
        transpose(graph, value, *columns),
        shape=(width, height, channels),
    )
    across = graph.add("MatMul", across, transpose(graph, value, *rows), shape=(height, width, channels))
    total = add(graph, [transpose(graph, down, 3, 2, 1), transpose(graph, across, 3, 1, 2)])
    return graph.add("Add", graph.add("Mul", total, module.gamma.numpy()), x)


def deeplab_head(graph: Graph, module: DeepLabV3PlusHead, features: Sequence[Value]) -> Value:
    """Separable convolutions at several dilations, refined by the finest map."""
    x, fine = features[-1], graph.call(module.c1_bottleneck, features[0])
    parts = [_wide(graph, graph.call(module.image_pool, x), x), *(graph.call(part, x) for part in module.aspp_modules)]
    coarse = _wide(graph, graph.call(module.bottleneck, concat(graph, parts)), fine)
    logits: Value = graph.call(module.conv_seg, graph.call(module.sep_bottleneck, concat(graph, [coarse, fine])))
    return logits


def separable_conv(graph: Graph, module: SeparableConv, x: Value) -> Value:
    """A depthwise and a 1x1 convolution, each with BatchNorm and ReLU."""
    first = module.depthwise_conv
    return conv_module(graph, module.pointwise_conv, graph.call(first.bn, graph.call(first.conv, x)))


def light_ham(graph: Graph, module: lightham.LightHam, features: Sequence[Value]) -> Value:
    """SegNeXt's head."""
    x = concat(graph, [_wide(graph, level, features[1]) for level in features[1:]])
    for part in (module.squeeze, module.hamburger, module.align, module.conv_seg):
        x = graph.call(part, x)
    return x


def hamburger(graph: Graph, module: lightham.Hamburger, x: Value) -> Value:
    """Context by matrix factorisation, and the shortcut."""
    given = graph.add("Relu", graph.call(module.ham_in.conv, x))
    channels, height, width = given.shape
    found = graph.call(module.ham, reshape(graph, given, (channels, height * width)))
    context = graph.call(module.ham_out, reshape(graph, found, given.shape))
    return graph.add("Relu", graph.add("Add", x, context))


def factorisation(graph: Graph, module: lightham.Factorisation, y: Value) -> Value:
    """The product of two non-negative matrices near y (H, n)."""

    def product(a: Value, b: Value) -> Value:
        return graph.add("MatMul", a, b, shape=(a.shape[0], b.shape[1]))

    def ratio(x: Value, above: Value, below: Value) -> Value:
        tiny = np.full((1, 1, 1), lightham.TINY, np.float32)
        return graph.add("Div", graph.add("Mul", x, above), graph.add("Add", below, tiny))

    def step(bases: Value, coefficients: Value) -> Value:
        across = transpose(graph, bases, 2, 1)
        return ratio(coefficients, product(across, y), product(product(across, bases), coefficients))

    # one for each image, as other values are: the same bases plus 0 times a column of y
    nothing = graph.add("Mul", graph.add("ReduceMean", y, shape=(y.shape[0], 1), axes=[2]), np.zeros(1, np.float32))
    bases = graph.add("Add", nothing, module.bases(1), shape=(module.channels, module.rank))
    coefficients = graph.add("Softmax", product(transpose(graph, bases, 2, 1), y), axis=1)
    for _ in range(lightham.STEPS[False]):
        coefficients = step(bases, coefficients)
        along = transpose(graph, coefficients, 2, 1)
        bases = ratio(bases, product(y, along), product(bases, product(coefficients, along)))
    return product(bases, step(bases, coefficients))


def conv_group_norm(graph: Graph, module: lightham.ConvGroupNorm, x: Value) -> Value:
    """Convolution and GroupNorm."""
    y: Value = graph.call(module.gn, graph.call(module.conv, x))
    return y


TRANSLATORS: dict[type, Translator] = {
    SegmentationNetwork: network,
    PyramidPooling: pyramid_pooling,
    PFNetHead: pfnet_head,
    SFNetHead: pfnet_head,
    FlowAlign: flow_align,
    PSPNetHead: pspnet_head,
    PoolingModule: pooling_module,
    UPerNetHead: upernet_head,
    UPerHead: uper_head,
    DeepLabV3PlusHead: deeplab_head,
    SeparableConv: separable_conv,
    CCNetHead: ccnet_head,
    CrissCrossAttention: criss_cross,
    lightham.LightHam: light_ham,
    lightham.Hamburger: hamburger,
    lightham.Factorisation: factorisation,
    lightham.ConvGroupNorm: conv_group_norm,
}
