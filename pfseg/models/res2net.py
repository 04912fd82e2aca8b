"""Res2Net-101 26w x 4s (Gao et al., "Res2Net", TPAMI 2019), first version.

Shapes: image (N, 3, H, W); c1..c4 at strides 4, 8, 16, 32.
"""

from __future__ import annotations

from typing import Any

from pfseg.models.resnet import ResNet, initialise_convolutions
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.resampling import BatchNormReLU
from pfseg.runtime import jt

nn = jt.nn
Var = Any  # jittor.Var, which ships no types

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottle2neck(jt.nn.Module):
    """Bottleneck whose 3x3 convolution is a chain over `scale` splits of the channels.

    In the `first` block of a layer the splits are not added to each other and the last one is average pooled
    (3x3, padding 1, always divided by 9) by the block's stride.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        downsample: Any,
        first: bool,
        base_width: int,
        scale: int,
    ) -> None:
        super().__init__()
        self.width = channels * base_width // 64
        self.scale, self.first = scale, first
        self.conv1 = Conv2d(in_channels, self.width * scale, 1, bias=False)
        self.bn1 = BatchNormReLU(self.width * scale)
        self.convs = nn.ModuleList(
            [Conv2d(self.width, self.width, 3, stride=stride, padding=1, bias=False) for _ in range(scale - 1)]
        )
        self.bns = nn.ModuleList([BatchNormReLU(self.width) for _ in range(scale - 1)])
        self.conv3 = Conv2d(self.width * scale, channels * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm2d(channels * self.expansion)
        self.pool = nn.Pool(3, stride=stride, padding=1, op="mean", count_include_pad=True) if first else None
        self.downsample = downsample

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, 4*channels, h/stride, w/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        splits = jt.split(self.bn1(self.conv1(x)), self.width, 1)
        outputs: list[Var] = []
        for i in range(self.scale - 1):
            split = splits[i] if i == 0 or self.first else outputs[-1] + splits[i]
            outputs.append(self.bns[i](self.convs[i](split)))
        outputs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        x = self.bn3(self.conv3(jt.concat(outputs, 1)))
        return jt.maximum(x + shortcut, 0.0)


class Res2Net(jt.nn.Module):
    """Res2Net feature extractor with keys as in the published segmentation checkpoints (`layer0` .. `layer4`).

    Attributes:
        out_channels: channels of c1..c4.
        feature_strides: (4, 8, 16, 32).
    """

    feature_strides = (4, 8, 16, 32)
    out_channels = (256, 512, 1024, 2048)

    def __init__(self, depth: int = 101, base_width: int = 26, scale: int = 4) -> None:
        """Build the network for `depth` 50 or 101; raises ValueError for another one."""
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(
                f"Res2Net of depth {depth} is unknown; use one of {sorted(_BLOCKS)} (config: model.backbone.depth)"
            )
        self.layer0 = nn.Sequential(
            Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            BatchNormReLU(64),
            nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
            nn.Pool(3, stride=2, padding=1, op="maximum"),
        )
        channels = 64
        for index, (width, count) in enumerate(zip((64, 128, 256, 512), _BLOCKS[depth], strict=True), 1):
            stride, out = (1 if index == 1 else 2), width * 4
            downsample = nn.Sequential(Conv2d(channels, out, 1, stride=stride, bias=False), BatchNorm2d(out))
            blocks = [Bottle2neck(channels, width, stride, downsample, True, base_width, scale)]
            blocks += [Bottle2neck(out, width, 1, None, False, base_width, scale) for _ in range(count - 1)]
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
            channels = out
        initialise_convolutions(self)

    rename_pretrained = staticmethod(ResNet.rename_pretrained)
