"""CCNet: attention of each pixel to its row and its column, applied twice (Huang et al., ICCV 2019).

As in speedinghzl/CCNet, in mmsegmentation's layout. Shapes: x (N, C, h, w), queries and keys (N, C/8, h, w); K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pfseg.models import initial
from pfseg.models.auxiliary import AuxiliaryHead
from pfseg.models.network import Head, HeadOutput
from pfseg.ops.convolution import Conv2d, FloatConv2d, Product
from pfseg.ops.layers import ChannelDropout, ConvModule
from pfseg.runtime import Var, jt

nn = jt.nn

_REDUCTION = 8  # of the channels that pixels are compared by


class CrissCrossAttention(jt.nn.Module):
    """What the pixels of a row and a column give to the one where they cross, by one softmax over all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = Conv2d(channels, channels // _REDUCTION, 1)
        self.key_conv = Conv2d(channels, channels // _REDUCTION, 1)
        self.value_conv = Conv2d(channels, channels, 1)
        self.gamma = jt.zeros((1,))
        self.product = Product()

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, C, h, w)."""
        n, c, height, width = x.shape
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        # columns: (N * w, h, channels); rows: (N * h, w, channels)
        vertical = self.product(_lines(query, (0, 3, 2, 1)), _lines(key, (0, 3, 1, 2)))
        horizontal = self.product(_lines(query, (0, 2, 3, 1)), _lines(key, (0, 2, 1, 3)))
        itself = jt.array(np.where(np.eye(height), -1e30, 0.0).astype(np.float32))  # counts once, in the row
        vertical = (vertical + itself.broadcast(vertical, [0])).reshape(n, width, height, height).permute(0, 2, 1, 3)
        energies = jt.concat([vertical, horizontal.reshape(n, height, width, width)], 3)
        weights = nn.softmax(energies, 3)
        down = weights[:, :, :, :height].permute(0, 2, 1, 3).reshape(n * width, height, height)
        across = weights[:, :, :, height:].reshape(n * height, width, width)
        down = self.product(down, _lines(value, (0, 3, 2, 1))).reshape(n, width, height, c).permute(0, 3, 2, 1)
        across = self.product(across, _lines(value, (0, 2, 3, 1))).reshape(n, height, width, c).permute(0, 3, 1, 2)
        total: Var = down + across
        return total * self.gamma.broadcast(total, [0, 1, 2]) + x


def _lines(x: Var, axes: tuple[int, int, int, int]) -> Var:
    """The axes of (N, C, h, w) in another order, the first two as one."""
    moved: Var = x.permute(*axes)
    a, b, *rest = moved.shape
    return moved.reshape(a * b, *rest)


class CCNetHead(Head):
    """CCNet; see `CCNetSettings`."""

    align_corners = False
    backbone_options: ClassVar = {"output_stride": 8, "dilation": "full"}

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, dim: int, aux_dim: int | None, dropout: float
    ) -> None:
        super().__init__()
        channels = in_channels[-1]
        self.aux_dim, self.p = aux_dim, dropout
        self.convs = nn.ModuleList([ConvModule(channels, dim, 3), ConvModule(dim, dim, 3)])
        self.conv_cat = ConvModule(channels + dim, dim, 3)
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = FloatConv2d(dim, num_classes, 1)
        initial.kaiming(self)
        initial.normal(self.conv_seg, 0.01)
        self.cca = CrissCrossAttention(dim)

    def auxiliary(self, in_channels: int, num_classes: int) -> jt.nn.Module | None:
        """A classifier on c3."""
        return AuxiliaryHead(in_channels, num_classes, self.aux_dim, self.p) if self.aux_dim else None

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, h, w) of the size of c4."""
        x = self.convs[0](features[-1])
        x = self.convs[1](self.cca(self.cca(x)))
        return HeadOutput(self.conv_seg(self.dropout(self.conv_cat(jt.concat([features[-1], x], 1)))))
