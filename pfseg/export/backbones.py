"""Backbones of `pfseg.models` in ONNX."""

from __future__ import annotations

from typing import Any

from pfseg.export.graph import Graph, Translator, Value
from pfseg.export.layers import add_relu, concat, gelu, split_channels
from pfseg.models import convnext, mscan
from pfseg.models.network import LayeredBackbone
from pfseg.models.res2net import Bottle2neck
from pfseg.models.resnet import BasicBlock, Bottleneck


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


def mscan_backbone(graph: Graph, module: mscan.MSCAN, x: Value) -> list[Value]:
    """c1..c4."""
    features = []
    for stage in range(1, 5):
        x = graph.call(getattr(module, f"patch_embed{stage}"), x)
        for block in getattr(module, f"block{stage}"):
            x = graph.call(block, x)
        x = graph.call(getattr(module, f"norm{stage}"), x)
        features.append(x)
    return features


def mscan_block(graph: Graph, module: mscan.Block, x: Value) -> Value:
    """Attention and MLP."""
    y = graph.call(module.attn, graph.call(module.norm1, x))
    x = graph.call(module.add_1, x, y, module.layer_scale_1)
    y = graph.call(module.mlp, graph.call(module.norm2, x))
    z: Value = graph.call(module.add_2, x, y, module.layer_scale_2)
    return z


def attention(graph: Graph, module: mscan.Attention, x: Value) -> Value:
    """Convolutional attention with its shortcut."""
    y = graph.call(module.spatial_gating_unit, gelu(graph, graph.call(module.proj_1, x)))
    return graph.add("Add", graph.call(module.proj_2, y), x)


def spatial_gating(graph: Graph, module: mscan.SpatialGating, x: Value) -> Value:
    """The input, weighted by its surroundings."""
    seen = around = graph.call(module.conv0, x)
    for i in range(3):
        strip = graph.call(getattr(module, f"conv{i}_1"), around)
        seen = graph.add("Add", seen, graph.call(getattr(module, f"conv{i}_2"), strip))
    return graph.add("Mul", graph.call(module.conv3, seen), x)


def mlp(graph: Graph, module: mscan.Mlp, x: Value) -> Value:
    """Two 1x1 convolutions, between them a depthwise one and GELU."""
    y: Value = graph.call(module.fc2, gelu(graph, graph.call(module.dwconv, graph.call(module.fc1, x))))
    return y


def _embedding(graph: Graph, module: mscan.PatchEmbedding, x: Value) -> Value:
    y: Value = graph.call(module.norm, graph.call(module.proj, x))
    return y


def _stem(graph: Graph, module: mscan.Stem, x: Value) -> Value:
    y: Value = graph.call(module.proj, x)
    return y


def _depthwise(graph: Graph, module: mscan.DepthwiseLayer, x: Value) -> Value:
    y: Value = graph.call(module.dwconv, x)
    return y


def _gelu(graph: Graph, _module: mscan.Gelu, x: Value) -> Value:
    return gelu(graph, x)


def convnext_backbone(graph: Graph, module: convnext.ConvNeXt, x: Value) -> list[Value]:
    """c1..c4, of which the next stage takes each as it is before its norm."""
    features = []
    for i, (downsample, stage) in enumerate(zip(module.downsample_layers, module.stages, strict=True)):
        x = graph.call(stage, graph.call(downsample, x))
        features.append(graph.call(getattr(module, f"norm{i}"), x))
    return features


def convnext_block(graph: Graph, module: convnext.Block, x: Value) -> Value:
    """A depthwise convolution and two layers."""
    y = graph.call(module.norm, graph.call(module.dwconv, x))
    y = graph.call(module.pwconv2, gelu(graph, graph.call(module.pwconv1, y)))
    z: Value = graph.call(module.add, x, y, module.gamma)
    return z


TRANSLATORS: dict[type, Translator] = {
    LayeredBackbone: layered_backbone,
    BasicBlock: basic_block,
    Bottleneck: bottleneck,
    Bottle2neck: bottle2neck,
    mscan.MSCAN: mscan_backbone,
    mscan.Block: mscan_block,
    mscan.Attention: attention,
    mscan.SpatialGating: spatial_gating,
    mscan.Mlp: mlp,
    mscan.Stem: _stem,
    mscan.PatchEmbedding: _embedding,
    mscan.DepthwiseLayer: _depthwise,
    mscan.Gelu: _gelu,
    convnext.ConvNeXt: convnext_backbone,
    convnext.Block: convnext_block,
}
