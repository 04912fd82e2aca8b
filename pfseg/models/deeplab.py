"""DeepLabV3+: separable convolutions at several dilations, refined by the finest map (Chen et al., ECCV 2018).

As in mmsegmentation's `DepthwiseSeparableASPPHead`. Shapes: c1 (N, B, H, W) and c4 (N, C, h, w) of the backbone's maps;
D = dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pfseg.models import initial
from pfseg.models.auxiliary import AuxiliaryHead
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import FloatConv2d
from pfseg.ops.depthwise import DepthwiseConv2d
from pfseg.ops.layers import AdaptiveAvgPool, BatchNormReLU, ChannelDropout, ConvModule
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn


class NormedDepthwise(jt.nn.Module):
    """3x3 convolution of each channel by itself, batch norm, ReLU."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = DepthwiseConv2d(channels, 3, dilation, bias=False)
        self.bn = BatchNormReLU(channels)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to the same size."""
        y: Var = self.bn(self.conv(x))
        return y


class SeparableConv(jt.nn.Module):
    """A depthwise and a 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = NormedDepthwise(in_channels, dilation)
        self.pointwise_conv = ConvModule(in_channels, out_channels, 1)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, D, h, w)."""
        y: Var = self.pointwise_conv(self.depthwise_conv(x))
        return y


class DeepLabV3PlusHead(Head):
    """DeepLabV3+; see `DeepLabV3PlusSettings`."""

    channels_last = True
    align_corners = False
    backbone_options: ClassVar = {"output_stride": 8, "dilation": "contracted"}

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        dim: int,
        fine_dim: int,
        dilations: Sequence[int],
        aux_dim: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        finest, coarsest = in_channels[0], in_channels[-1]
        self.aux_dim, self.p = aux_dim, dropout
        self.image_pool = nn.Sequential(AdaptiveAvgPool(1, "floor_ceil"), ConvModule(coarsest, dim, 1))
        self.aspp_modules = nn.ModuleList(
            [ConvModule(coarsest, dim, 1), *(SeparableConv(coarsest, dim, dilation) for dilation in dilations)]
        )
        self.bottleneck = ConvModule((2 + len(dilations)) * dim, dim, 3)
        self.c1_bottleneck = ConvModule(finest, fine_dim, 1)
        self.sep_bottleneck = nn.Sequential(SeparableConv(dim + fine_dim, dim), SeparableConv(dim, dim))
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = FloatConv2d(dim, num_classes, 1)
        initial.kaiming(self)
        initial.normal(self.conv_seg, 0.01)

    def auxiliary(self, in_channels: int, num_classes: int) -> jt.nn.Module | None:
        """A classifier on c3."""
        return AuxiliaryHead(in_channels, num_classes, self.aux_dim, self.p) if self.aux_dim else None

    def aspp(self, x: Var) -> Var:
        """Map c4 to (N, D, h, w) with its context."""
        pooled = resize(self.image_pool(x), maps.size(x), align_corners=False)
        y: Var = self.bottleneck(maps.concat([pooled, *(module(x) for module in self.aspp_modules)]))
        return y

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H, W) of the size of c1."""
        fine = self.c1_bottleneck(features[0])
        coarse = resize(self.aspp(features[-1]), maps.size(fine), align_corners=False)
        return HeadOutput(self.conv_seg(self.dropout(self.sep_bottleneck(maps.concat([coarse, fine])))))
