"""UPerHead, mmsegmentation's form of UPerNet (Xiao et al., ECCV 2018): pyramid pooling and a feature pyramid.

Source: mmsegmentation 1.2.2, `uper_head.py`, `psp_head.py`, `fcn_head.py`. Shapes: c1..c4 the backbone's maps; D =
channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfseg.models import initial
from pfseg.models.auxiliary import AuxiliaryHead
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import FloatConv2d
from pfseg.ops.layers import AdaptiveAvgPool, ChannelDropout, ConvModule
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn
_SIZES = (1, 2, 3, 6)


class UPerHead(Head):
    """Pyramid pooling of c4, fused down to c1; D wide, with an auxiliary head half as wide."""

    channels_last = True
    align_corners = False

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int, dropout: float) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.width, self.p = channels // 2, dropout
        self.psp_modules = nn.ModuleList(
            [nn.Sequential(AdaptiveAvgPool(size, "floor_ceil"), ConvModule(coarsest, channels, 1)) for size in _SIZES]
        )
        self.bottleneck = ConvModule(coarsest + len(_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList([ConvModule(c, channels, 1) for c in finer])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in finer])
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3)
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = FloatConv2d(channels, num_classes, 1)
        initial.kaiming(self)
        initial.normal(self.conv_seg, 0.01)

    def auxiliary(self, in_channels: int, num_classes: int) -> jt.nn.Module:
        """The published auxiliary head."""
        return AuxiliaryHead(in_channels, num_classes, self.width, self.p)

    def pool(self, x: Var) -> Var:
        """Map c4 to (N, D, h, w) with its context."""
        pooled = [_resize(module(x), x) for module in self.psp_modules]
        y: Var = self.bottleneck(maps.concat([x, *pooled]))
        return y

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits at the stride of c1."""
        levels = [self.pool(features[-1])]
        fused = levels[0]
        for i in reversed(range(len(features) - 1)):
            lateral = self.lateral_convs[i](features[i])
            fused = lateral + _resize(fused, lateral)
            levels.insert(0, self.fpn_convs[i](fused))
        x = self.fpn_bottleneck(maps.concat([_resize(level, levels[0]) for level in levels]))
        return HeadOutput(self.conv_seg(self.dropout(x)))


def _resize(x: Var, like: Var) -> Var:
    return resize(x, maps.size(like), align_corners=False)
