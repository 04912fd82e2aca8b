"""ResNet with the deep stem and the "variant D" dilation of the published PFNet: c1..c4 at strides 4, 8, 16, 32."""

from __future__ import annotations

from typing import Any

from pfseg.models.network import LayeredBackbone
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.ops.pooling import MaxPool2d
from pfseg.runtime import Var, jt

nn = jt.nn
Shortcut = nn.Sequential | None


class BasicBlock(jt.nn.Module):
    """Two 3x3 convolutions; the stride sits in `conv1`, the dilation in `conv2`."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: Shortcut, dilation: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = BatchNormReLU(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = downsample

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        return self.bn2.add_relu(self.conv2(x), shortcut)


class Bottleneck(jt.nn.Module):
    """1x1, 3x3 (stride and dilation) and 1x1 convolution to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: Shortcut, dilation: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = BatchNormReLU(channels)
        self.conv2 = Conv2d(channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNormReLU(channels)
        self.conv3 = Conv2d(channels, channels * 4, 1, bias=False)
        self.bn3 = BatchNorm2d(channels * 4)
        self.downsample = downsample

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, 4*channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        return self.bn3.add_relu(self.conv3(x), shortcut)


_BLOCKS: dict[int, type[BasicBlock] | type[Bottleneck]] = {18: BasicBlock, 50: Bottleneck, 101: Bottleneck}
_DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # blocks of layer1..layer4


class ResNet(LayeredBackbone):
    """ResNet of depth 18, 50 or 101 with the published weight names (`layer0` .. `layer4`); ValueError for others.

    `layer3` and `layer4` dilate their 3x3 `conv2` while the strides stay 2, unlike the usual output-stride-8 networks.
    """

    feature_strides = (4, 8, 16, 32)
    channels_last = True

    def __init__(self, depth: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            known = f"use one of {sorted(_DEPTHS)} (config: model.backbone.depth)"
            raise ValueError(f"ResNet of depth {depth} is unknown; {known}")
        block, counts = _BLOCKS[depth], _DEPTHS[depth]
        c1, c2, c3, c4 = (width * block.expansion for width in (64, 128, 256, 512))
        self.out_channels = (c1, c2, c3, c4)
        self.layer0 = _deep_stem(in_channels)
        self.layer1 = make_layer(block, 128, 64, counts[0], stride=1, dilation=1)
        self.layer2 = make_layer(block, c1, 128, counts[1], stride=2, dilation=1)
        self.layer3 = make_layer(block, c2, 256, counts[2], stride=2, dilation=2)
        self.layer4 = make_layer(block, c3, 512, counts[3], stride=2, dilation=4)
        initialise_convolutions(self)

    @staticmethod
    def rename_pretrained(key: str) -> str:
        """Name of a weight of an ImageNet file (`conv1.*`, `bn1.*`, ...) in this network."""
        stem = {"conv1": "layer0.0", "bn1": "layer0.1"}
        first, dot, rest = key.partition(".")
        return stem[first] + dot + rest if first in stem and dot else key


def _deep_stem(in_channels: int) -> nn.Sequential:
    """Three 3x3 convolutions to 128 channels and max pooling, at stride 4."""
    convolutions = nn.Sequential(
        Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=False),
        BatchNormReLU(64),
        nn.Identity(),  # keeps the published numbers, in which ReLU is a module
        Conv2d(64, 64, 3, padding=1, bias=False),
        BatchNormReLU(64),
        nn.Identity(),
        Conv2d(64, 128, 3, padding=1, bias=False),
    )
    return nn.Sequential(convolutions, BatchNormReLU(128), nn.Identity(), MaxPool2d(3, stride=2, padding=1))


def make_layer(
    block: Any, in_channels: int, channels: int, count: int, *, stride: int, **options: int
) -> nn.Sequential:
    """`count` blocks; the first takes the stride and changes the number of channels, also of the shortcut."""
    out = channels * block.expansion
    downsample = nn.Sequential(Conv2d(in_channels, out, 1, stride=stride, bias=False), BatchNorm2d(out))
    blocks = [block(in_channels, channels, stride, downsample, **options)]
    blocks += [block(out, channels, 1, None, **options) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def initialise_convolutions(module: jt.nn.Module) -> None:
    """Kaiming normal (fan out) for every convolution, as ImageNet backbones are initialised."""
    for part in module.modules():
        if isinstance(part, nn.Conv):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
