"""ResNet with the stems and dilations of published segmentation networks: c1..c4 at strides 4, 8, 16, 32 or less."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pfseg.models.network import LayeredBackbone
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.ops.pooling import MaxPool2d
from pfseg.runtime import Var, jt

nn = jt.nn
Shortcut = nn.Sequential | None


class BasicBlock(jt.nn.Module):
    """Two 3x3 convolutions; the stride sits in `conv1`, the dilation in `conv2`, as PFNet has them."""

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
        x, shortcut = maps.fork(x)
        shortcut = shortcut if self.downsample is None else self.downsample(shortcut)
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
        x, shortcut = maps.fork(x)
        shortcut = shortcut if self.downsample is None else self.downsample(shortcut)
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        return self.bn3.add_relu(self.conv3(x), shortcut)


_BLOCKS: dict[int, type[BasicBlock] | type[Bottleneck]] = {18: BasicBlock, 50: Bottleneck, 101: Bottleneck}
_DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # blocks of layer1..layer4
# stem of ImageNet files -> ours
_STEM = {"conv1": "layer0.0", "bn1": "layer0.1", "stem.7": "layer0.1", "stem": "layer0.0"}
_CSAIL = {
    **{f"conv{i}": f"layer0.0.{3 * i - 3}" for i in (1, 2, 3)},
    **{f"bn{i}": f"layer0.0.{3 * i - 2}" for i in (1, 2)},
    "bn3": "layer0.1",
}
_STEMS = {"deep": (64, 64, 128), "v1c": (32, 32, 64)}  # channels of the three convolutions


class ResNet(LayeredBackbone):
    """ResNet of depth 18, 50 or 101 with the published weight names (`layer0` .. `layer4`); ValueError for others.

    The settings are those of `ResNetSettings`; None stands for PFNet's, whose layer3 and layer4 are dilated while their
    strides stay 2.
    """

    channels_last = True

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        *,
        stem: str = "deep",
        output_stride: int | None = None,
        dilation: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            known = f"use one of {sorted(_DEPTHS)} (config: model.backbone.depth)"
            raise ValueError(f"ResNet of depth {depth} is unknown; {known}")
        output_stride, dilation = output_stride or 32, dilation or "full"
        if output_stride < 32 and dilation == "none":
            raise ValueError(
                f"output_stride={output_stride} takes strides away, which dilation replaces: use full or contracted, "
                "got none (config: model.backbone.dilation)"
            )
        self.feature_strides = (4, 8, min(16, output_stride), output_stride)
        block, counts = _BLOCKS[depth], _DEPTHS[depth]
        c1, c2, c3, c4 = (width * block.expansion for width in (64, 128, 256, 512))
        self.out_channels = (c1, c2, c3, c4)
        self.layer0, width = _stem(stem, in_channels)
        self.layer1 = make_layer(block, width, 64, counts[0])
        self.layer2 = make_layer(block, c1, 128, counts[1], stride=2)
        # what the strides, those kept too, would have skipped
        third, fourth = (1, 1) if dilation == "none" else (1, 2) if output_stride == 16 else (2, 4)
        rates = [(max(1, rate // 2) if dilation == "contracted" else rate, rate) for rate in (third, fourth)]
        strides = 2 if output_stride > 8 else 1, 2 if output_stride > 16 else 1
        self.layer3 = make_layer(block, c2, 256, counts[2], stride=strides[0], dilations=rates[0])
        self.layer4 = make_layer(block, c3, 512, counts[3], stride=strides[1], dilations=rates[1])
        initialise_convolutions(self)

    @staticmethod
    def rename_pretrained(key: str, keys: Collection[str]) -> str:
        """Name of a weight of an ImageNet file in this network.

        Such files name the stem in three ways: as torchvision (`conv1`, `bn1`) and, with three convolutions, PFNet's
        authors (`conv1.0`); as MIT CSAIL (`conv1` to `conv3`); and as mmsegmentation (`stem`).
        """
        csail = "conv3.weight" in keys
        return _rename(key, _CSAIL if csail else _STEM)


def _stem(kind: str, in_channels: int) -> tuple[nn.Sequential, int]:
    """A 7x7 or three 3x3 convolutions and max pooling, at stride 4; and the number of channels."""
    if kind == "plain":
        width = 64
        convolutions: jt.nn.Module = Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
    else:
        first, second, width = _STEMS[kind]
        convolutions = nn.Sequential(
            Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False),
            BatchNormReLU(first),
            nn.Identity(),  # keeps the published numbers, in which ReLU is a module
            Conv2d(first, second, 3, padding=1, bias=False),
            BatchNormReLU(second),
            nn.Identity(),
            Conv2d(second, width, 3, padding=1, bias=False),
        )
    return nn.Sequential(convolutions, BatchNormReLU(width), nn.Identity(), MaxPool2d(3, stride=2, padding=1)), width


def make_layer(
    block: Any,
    in_channels: int,
    channels: int,
    count: int,
    *,
    stride: int = 1,
    dilations: tuple[int, int] | None = (1, 1),
) -> nn.Sequential:
    """`count` blocks; the first takes the stride and changes the number of channels, also of the shortcut.

    `dilations` are those of the first block and of the others; None for blocks without that option.
    """
    out = channels * block.expansion
    first, others = ({}, {}) if dilations is None else ({"dilation": dilation} for dilation in dilations)
    downsample = None
    if (in_channels, stride) != (out, 1):
        downsample = nn.Sequential(Conv2d(in_channels, out, 1, stride=stride, bias=False), BatchNorm2d(out))
    blocks = [block(in_channels, channels, stride, downsample, **first)]
    blocks += [block(out, channels, 1, None, **others) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _rename(key: str, names: Mapping[str, str]) -> str:
    """The key with the first of `names` that it begins with replaced."""
    found = next((name for name in names if key.startswith(f"{name}.")), None)
    return key if found is None else names[found] + key.removeprefix(found)


def initialise_convolutions(module: jt.nn.Module) -> None:
    """Kaiming normal (fan out) for every convolution, as ImageNet backbones are initialised."""
    for part in module.modules():
        if isinstance(part, nn.Conv):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
