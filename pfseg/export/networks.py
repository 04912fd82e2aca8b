"""Backbones and heads of `pfseg.models` in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfseg.export.graph import Graph, Translator, Value
from pfseg.export.layers import add_relu, concat, resize, split_channels
from pfseg.models.network import LayeredBackbone, SegmentationNetwork
from pfseg.models.pfnet import PFNetHead, PyramidPooling
from pfseg.models.res2net import Bottle2neck
from pfseg.models.resnet import BasicBlock, Bottleneck


def network(graph: Graph, module: SegmentationNetwork, x: Value) -> Value:
    """Logits (K, H, W) of an image."""
    layered = hasattr(module.backbone, "layer4") and type(module.backbone).execute is LayeredBackbone.execute
    features: Any = layered_backbone(graph, module.backbone, x) if layered else graph.call(module.backbone, x)
    logits: Value = graph.call(module.head, features)
    return resize(graph, logits, x.shape[1:])


def layered_backbone(graph: Graph, module: Any, x: Value) -> list[Value]:
    """c1..c4."""
    maps = []
    x = graph.call(module.layer0, x)
    for layer in (module.layer1, module.layer2, module.layer3, module.layer4):
        x = graph.call(layer, x)
        maps.append(x)
    return maps


def _shortcut(graph: Graph, module: Any, x: Value) -> Value:
    return x if module.downsample is None else graph.call(module.downsample, x)


def basic_block(graph: Graph, module: BasicBlock, x: Value) -> Value:
    """Two convolutions and the shortcut."""
    y = graph.call(module.bn1, graph.call(module.conv1, x))
    y = graph.call(module.bn2, graph.call(module.conv2, y))
    return add_relu(graph, y, _shortcut(graph, module, x))


def bottleneck(graph: Graph, module: Bottleneck, x: Value) -> Value:
    """Three convolutions and the shortcut."""
    y = graph.call(module.bn1, graph.call(module.conv1, x))
    y = graph.call(module.bn2, graph.call(module.conv2, y))
    y = graph.call(module.bn3, graph.call(module.conv3, y))
    return add_relu(graph, y, _shortcut(graph, module, x))


def bottle2neck(graph: Graph, module: Bottle2neck, x: Value) -> Value:
    """A chain over splits of the channels, and the shortcut."""
    *splits, last = split_channels(graph, graph.call(module.bn1, graph.call(module.conv1, x)), module.width)
    outputs: list[Value] = []
    for part, conv, norm in zip(splits, module.convs, module.bns, strict=True):
        given = graph.add("Add", outputs[-1], part) if module.chained and outputs else part
        outputs.append(graph.call(norm, graph.call(conv, given)))
    outputs.append(last if module.pool is None else graph.call(module.pool, last))
    y = graph.call(module.bn3, graph.call(module.conv3, concat(graph, outputs)))
    return add_relu(graph, y, _shortcut(graph, module, x))


def pyramid_pooling(graph: Graph, module: PyramidPooling, x: Value) -> Value:
    """Context from average pooling at several sizes."""
    pooled = [resize(graph, graph.call(stage, x), x.shape[1:]) for stage in module.stages]
    merged: Value = graph.call(module.bottleneck, concat(graph, [*pooled, x]))
    return merged


def pfnet_head(graph: Graph, module: PFNetHead, features: Sequence[Value]) -> Value:
    """Pyramid pooling, then PointFlow and fusion down to the finest map."""
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


TRANSLATORS: dict[type, Translator] = {
    SegmentationNetwork: network,
    LayeredBackbone: layered_backbone,
    BasicBlock: basic_block,
    Bottleneck: bottleneck,
    Bottle2neck: bottle2neck,
    PyramidPooling: pyramid_pooling,
    PFNetHead: pfnet_head,
}
