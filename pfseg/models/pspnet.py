"""PSPNet: pyramid pooling on a map at stride 8 (Zhao et al., CVPR 2017).

As in hszhao/semseg. Shapes: c4 (N, C, h, w); K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d, FloatConv2d
from pfseg.ops.layers import AdaptiveAvgPool, BatchNormReLU, ChannelDropout, ConvNormReLU
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn


class PoolingModule(jt.nn.Module):
    """Average pooling at several sizes, each reduced to its share of the channels."""

    def __init__(self, channels: int, sizes: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        dim = channels // len(sizes)
        self.features = nn.ModuleList(
            [nn.Sequential(AdaptiveAvgPool(size, "floor_ceil"), *ConvNormReLU(channels, dim, 1)) for size in sizes]
        )

    def execute(self, x: Var) -> list[Var]:
        """Map (N, C, h, w) to maps (N, C/4, h, w)."""
        return [resize(stage(x), maps.size(x), self.align_corners) for stage in self.features]


def _classifier(in_channels: int, dim: int, num_classes: int, dropout: float) -> nn.Sequential:
    """3x3 convolution, dropout and classifier."""
    return nn.Sequential(
        Conv2d(in_channels, dim, 3, padding=1, bias=False),
        BatchNormReLU(dim),
        nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
        ChannelDropout(dropout),
        FloatConv2d(dim, num_classes, 1),
    )


class PSPNetHead(Head):
    """PSPNet; see `PSPNetSettings`."""

    channels_last = True
    backbone_options: ClassVar = {"output_stride": 8, "dilation": "full"}

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        dim: int,
        pool_sizes: Sequence[int],
        align_corners: bool,
        aux_dim: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        channels = in_channels[-1]
        self.align_corners, self.aux_dim, self.dropout = align_corners, aux_dim, dropout
        self.ppm = PoolingModule(channels, pool_sizes, align_corners)
        pooled = channels + channels // len(pool_sizes) * len(pool_sizes)
        self.cls = _classifier(pooled, dim, num_classes, dropout)

    def auxiliary(self, in_channels: int, num_classes: int) -> jt.nn.Module | None:
        """A classifier on c3."""
        return _classifier(in_channels, self.aux_dim, num_classes, self.dropout) if self.aux_dim else None

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, h, w) of the size of c4."""
        return HeadOutput(self.cls(maps.concat([features[-1], *self.ppm(features[-1])])))
