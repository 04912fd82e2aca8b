"""Auxiliary heads, which training alone uses: logits from the map before the coarsest."""

from __future__ import annotations

from pfseg.models import initial
from pfseg.ops.convolution import FloatConv2d
from pfseg.ops.layers import ChannelDropout, ConvModule
from pfseg.runtime import Var, jt


class AuxiliaryHead(jt.nn.Module):
    """3x3 convolution to `dim` channels, dropout, classifier; names of weights as in mmsegmentation's FCNHead."""

    def __init__(self, in_channels: int, num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.convs = jt.nn.ModuleList([ConvModule(in_channels, dim, 3)])
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = FloatConv2d(dim, num_classes, 1)
        initial.kaiming(self)
        initial.normal(self.conv_seg, 0.01)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to logits (N, K, h, w)."""
        logits: Var = self.conv_seg(self.dropout(self.convs[0](x)))
        return logits
