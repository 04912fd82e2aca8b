"""Heads on a feature pyramid in ONNX: semantic FPN, PointRend and FarSeg."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfseg.export.graph import Graph, Translator, Value
from pfseg.export.heads import add
from pfseg.export.layers import concat, convolution, reshape, resize, resize_nearest, split_channels
from pfseg.export.points import flatten, sample, scatter, top
from pfseg.models.farseg import Decoder, FarSegHead, SceneRelation
from pfseg.models.fpn import CoarseHead, FeaturePyramid, FPNHead, NormedConv, Upsample
from pfseg.models.pointrend import STEPS, PointHead, PointRendHead
from pfseg.ops.convolution import PointConv


def feature_pyramid(graph: Graph, module: FeaturePyramid, features: Sequence[Value]) -> list[Value]:
    """Levels from fine to coarse."""
    merged: list[Value] = []
    for inner, feature in zip(reversed(module.inner), reversed(features), strict=True):
        lateral = graph.call(getattr(module, inner), feature)
        if merged:
            lateral = add(graph, [lateral, resize_nearest(graph, merged[-1], lateral.shape[1:])])
        merged.append(lateral)
    return [graph.call(getattr(module, outer), x) for outer, x in zip(module.outer, reversed(merged), strict=True)]


def upsample(graph: Graph, module: Upsample, x: Value) -> Value:
    """Twice the sides."""
    return resize(graph, x, [2 * side for side in x.shape[1:]], align_corners=module.align_corners)


def normed_conv(graph: Graph, module: NormedConv, x: Value) -> Value:
    """Convolution, group norm and ReLU."""
    y: Value = graph.call(module.norm, convolution(graph, module, x))
    return y


def coarse_head(graph: Graph, module: CoarseHead, pyramid: Sequence[Value]) -> Value:
    """The sum of all levels at the finest size, and a classifier."""
    size = pyramid[0].shape[1:]
    levels = [graph.call(getattr(module, name), x) for name, x in zip(module.names, pyramid, strict=True)]
    logits: Value = graph.call(
        module.predictor, add(graph, [resize(graph, level, size, align_corners=False) for level in levels])
    )
    return logits


def fpn_head(graph: Graph, module: FPNHead, features: Sequence[Value]) -> Value:
    """Semantic FPN."""
    logits: Value = graph.call(module.coarse, graph.call(module.fpn, features))
    return logits


def point_rend_head(graph: Graph, module: PointRendHead, features: Sequence[Value]) -> Value:
    """Semantic FPN whose logits are classified anew at the least certain points of each doubling."""
    pyramid = graph.call(module.fpn, features)
    coarse, p2 = graph.call(module.coarse, pyramid), pyramid[0]
    logits: Value = coarse
    for _ in range(STEPS):
        size = tuple(2 * side for side in logits.shape[1:])
        logits = resize(graph, logits, size, align_corners=False)
        best, _ = graph.add_many("TopK", [logits, np.array([2])], [(2, *size)] * 2, axis=1)
        first, second = split_channels(graph, best, 1)
        points = top(graph, graph.add("Sub", second, first), module.points)
        refined = graph.call(module.point_head, *(sample(graph, x, points, size) for x in (p2, coarse)))
        logits = reshape(graph, scatter(graph, flatten(graph, logits), refined, points, unique=True), logits.shape)
    return logits


def point_head(graph: Graph, module: PointHead, fine: Value, coarse: Value) -> Value:
    """Logits (K, P) of points."""
    x = concat(graph, [fine, coarse])
    for layer in (module.fc1, module.fc2, module.fc3, module.predictor):
        x = graph.call(layer, x)
    return x


def point_conv(graph: Graph, module: PointConv, x: Value) -> Value:
    """A product with the weights at each point."""
    weight = module.weight.numpy()[:, :, 0]
    y = graph.add("MatMul", weight, x, shape=(weight.shape[0], *x.shape[1:]))
    if module.bias is not None:
        y = graph.add("Add", y, module.bias.numpy()[:, None])
    return graph.add("Relu", y) if module.relu else y


def far_seg_head(graph: Graph, module: FarSegHead, features: Sequence[Value]) -> Value:
    """Levels weighted by how their pixels relate to the scene."""
    channels = features[-1].shape[0]
    scene = graph.add("ReduceMean", features[-1], shape=(channels, 1, 1), axes=[2, 3])
    refined = graph.call(module.sr, scene, graph.call(module.fpn, features))
    logits: Value = graph.call(module.cls_pred_conv, graph.call(module.decoder, refined))
    return logits


def scene_relation(graph: Graph, module: SceneRelation, scene: Value, pyramid: Sequence[Value]) -> list[Value]:
    """Each level times the sigmoid of its pixels' products with a vector of the scene."""
    refined = []
    for i, level in enumerate(pyramid):
        content = graph.call(module.content_encoders[i], level)
        products = graph.add("Mul", content, graph.call(module.scene_encoder[i], scene))
        total = graph.add("ReduceSum", products, np.array([1]), shape=(1, *level.shape[1:]))
        features = graph.call(module.feature_reencoders[i], level)
        refined.append(graph.add("Mul", features, graph.add("Sigmoid", total)))
    return refined


def decoder(graph: Graph, module: Decoder, pyramid: Sequence[Value]) -> Value:
    """The mean of all levels at the finest size."""
    size = pyramid[0].shape[1:]
    parts = [resize(graph, graph.call(block, x), size) for block, x in zip(module.blocks, pyramid, strict=True)]
    return graph.add("Div", add(graph, parts), np.full((1, 1, 1), len(parts), np.float32))


TRANSLATORS: dict[type, Translator] = {
    FeaturePyramid: feature_pyramid,
    Upsample: upsample,
    NormedConv: normed_conv,
    CoarseHead: coarse_head,
    FPNHead: fpn_head,
    PointRendHead: point_rend_head,
    PointHead: point_head,
    PointConv: point_conv,
    FarSegHead: far_seg_head,
    SceneRelation: scene_relation,
    Decoder: decoder,
}
