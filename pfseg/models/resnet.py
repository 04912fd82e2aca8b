"""ResNet-18/50/101 with the deep stem and "variant D" dilation of the published PFNet.

Shapes: image (N, 3, H, W); c1..c4 at strides 4, 8, 16, 32.
"""

from __future__ import annotations

from typing import Any

from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.resampling import BatchNormReLU
from pfseg.runtime import jt

nn = jt.nn
Var = Any  # jittor.Var, which ships no types

# Dilation of the 3x3 `conv2` of layer1..layer4; the strides stay 2, unlike the usual output-stride-8 networks.
_DILATION = (1, 1, 2, 4)


class BasicBlock(jt.nn.Module):
    """Two 3x3 convolutions; the stride sits in `conv1`, the dilation in `conv2`."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, downsample: Any) -> None:
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
        return jt.maximum(self.bn2(self.conv2(x)) + shortcut, 0.0)


class Bottleneck(jt.nn.Module):
    """1x1, 3x3 (stride and dilation) and 1x1 convolution to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, downsample: Any) -> None:
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
        return jt.maximum(self.bn3(self.conv3(x)) + shortcut, 0.0)


_DEPTHS: dict[int, tuple[Any, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(jt.nn.Module):
    """ResNet feature extractor with keys as in the published segmentation checkpoints (`layer0` .. `layer4`).

    Attributes:
        out_channels: channels of c1..c4.
        feature_strides: (4, 8, 16, 32).
    """

    feature_strides = (4, 8, 16, 32)

    def __init__(self, depth: int) -> None:
        """Build the network for `depth` 18, 50 or 101; raises ValueError for another one."""
        super().__init__()
        if depth not in _DEPTHS:
            raise ValueError(
                f"ResNet of depth {depth} is unknown; use one of {sorted(_DEPTHS)} (config: model.backbone.depth)"
            )
        block, counts = _DEPTHS[depth]
        self.out_channels = tuple(c * block.expansion for c in (64, 128, 256, 512))
        stem = nn.Sequential(
            Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
            BatchNormReLU(64),
            nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
            Conv2d(64, 64, 3, padding=1, bias=False),
            BatchNormReLU(64),
            nn.Identity(),
            Conv2d(64, 128, 3, padding=1, bias=False),
        )
        self.layer0 = nn.Sequential(
            stem, BatchNormReLU(128), nn.Identity(), nn.Pool(3, stride=2, padding=1, op="maximum")
        )
        channels = 128
        for index, (width, count, dilation) in enumerate(zip((64, 128, 256, 512), counts, _DILATION, strict=True), 1):
            stride = 1 if index == 1 else 2
            out = width * block.expansion
            downsample = nn.Sequential(Conv2d(channels, out, 1, stride=stride, bias=False), BatchNorm2d(out))
            if stride == 1 and channels == out:
                downsample = None
            blocks = [block(channels, width, stride, dilation, downsample)]
            blocks += [block(out, width, 1, dilation, None) for _ in range(count - 1)]
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
            channels = out
        initialise_convolutions(self)

    @staticmethod
    def rename_pretrained(key: str) -> str:
        """Key of an ImageNet file (`conv1.*`, `bn1.*`, ...) in this network."""
        for old, new in (("conv1.", "layer0.0."), ("bn1.", "layer0.1.")):
            if key.startswith(old):
                return new + key[len(old) :]
        return key


def initialise_convolutions(module: Any) -> None:
    """Kaiming normal (fan out) for every convolution, as ImageNet backbones are initialised."""
    for m in module.modules():
        if isinstance(m, nn.Conv):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
