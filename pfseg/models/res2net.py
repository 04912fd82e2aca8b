"""Res2Net 26w x 4s (Gao et al., TPAMI 2019), first version: c1..c4 at strides 4, 8, 16, 32."""

from __future__ import annotations

from pfseg.models.network import LayeredBackbone
from pfseg.models.resnet import ResNet, initialise_convolutions, make_layer
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.ops.pooling import AvgPool2d, MaxPool2d
from pfseg.runtime import Var, jt

nn = jt.nn

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # blocks of layer1..layer4
_WIDTH, _SPLITS = 26, 4  # "26w x 4s": channels of a split in layer1, and number of splits


class Bottle2neck(jt.nn.Module):
    """Bottleneck whose 3x3 convolution is a chain over splits of the channels.

    In the first block of a layer, the one with a `downsample`, the splits are not added to each other and the last one
    is average pooled (3x3, padding 1, always divided by 9) by the block's stride.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Sequential | None) -> None:
        super().__init__()
        self.width = channels * _WIDTH // 64  # of a split
        first = downsample is not None
        self.chained = not first
        self.conv1 = Conv2d(in_channels, self.width * _SPLITS, 1, bias=False)
        self.bn1 = BatchNormReLU(self.width * _SPLITS)
        self.convs = nn.ModuleList(
            [Conv2d(self.width, self.width, 3, stride=stride, padding=1, bias=False) for _ in range(_SPLITS - 1)]
        )
        self.bns = nn.ModuleList([BatchNormReLU(self.width) for _ in range(_SPLITS - 1)])
        self.conv3 = Conv2d(self.width * _SPLITS, channels * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm2d(channels * self.expansion)
        self.pool = AvgPool2d(3, stride=stride, padding=1) if first else None
        self.downsample = downsample

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, 4*channels, h/stride, w/stride)."""
        x, shortcut = maps.fork(x)
        shortcut = shortcut if self.downsample is None else self.downsample(shortcut)
        *splits, last = maps.split(self.bn1(self.conv1(x)), self.width)
        outputs: list[Var] = []
        for split, convolution, norm in zip(splits, self.convs, self.bns, strict=True):
            x = maps.add(outputs[-1], split) if self.chained and outputs else split
            outputs.append(norm(convolution(x)))
        outputs.append(last if self.pool is None else self.pool(last))
        return self.bn3.add_relu(self.conv3(maps.concat(outputs)), shortcut)


class Res2Net(LayeredBackbone):
    """Res2Net of depth 50 or 101 with the published weight names (`layer0` .. `layer4`); ValueError for others."""

    feature_strides = (4, 8, 16, 32)
    channels_last = True
    out_channels = (256, 512, 1024, 2048)

    def __init__(self, depth: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            known = f"use one of {sorted(_DEPTHS)} (config: model.backbone.depth)"
            raise ValueError(f"Res2Net of depth {depth} is unknown; {known}")
        counts = _DEPTHS[depth]
        self.layer0 = nn.Sequential(
            Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            BatchNormReLU(64),
            nn.Identity(),  # keeps the published numbers, in which ReLU is a module
            MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = make_layer(Bottle2neck, 64, 64, counts[0], dilations=None)
        self.layer2 = make_layer(Bottle2neck, 256, 128, counts[1], stride=2, dilations=None)
        self.layer3 = make_layer(Bottle2neck, 512, 256, counts[2], stride=2, dilations=None)
        self.layer4 = make_layer(Bottle2neck, 1024, 512, counts[3], stride=2, dilations=None)
        initialise_convolutions(self)

    rename_pretrained = staticmethod(ResNet.rename_pretrained)
