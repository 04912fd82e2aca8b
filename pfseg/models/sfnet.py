"""SFNet: PFNet's pyramid whose coarse maps are warped by a learned flow, not by points (Li et al., ECCV 2020).

As in lxtGH/SFSegNets, head v1. Shapes: coarse (N, D, H, W), fine (N, D, h, w); flow (N, 2, h, w): x, then y.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np

from pfseg.models.network import Head, HeadOutput
from pfseg.models.pfnet import PyramidPooling
from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d, FloatConv2d
from pfseg.ops.layers import BatchNormReLU, ChannelDropout, ConvNormReLU
from pfseg.ops.resampling import resize
from pfseg.ops.sampling import sample
from pfseg.runtime import Var, jt

nn = jt.nn

_NARROW = 512  # channels of the coarsest map up to which the pyramid has 128 channels, as published for ResNet-18


class FlowAlign(jt.nn.Module):
    """A flow from both maps, and the coarse map at the places that it points to."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down_h = Conv2d(channels, channels // 2, 1, bias=False)
        self.down_l = Conv2d(channels, channels // 2, 1, bias=False)
        self.flow_make = Conv2d(channels, 2, 3, padding=1, bias=False)

    def execute(self, coarse: Var, fine: Var) -> Var:
        """Give the coarse map warped to (N, D, h, w)."""
        return self.warp(coarse, self.flow(coarse, fine))

    def flow(self, coarse: Var, fine: Var) -> Var:
        """The flow (N, 2, h, w), in half sides of the coarse map over h and w."""
        reduced = resize(self.down_h(coarse), maps.size(fine))
        flow: Var = self.flow_make(maps.concat([reduced, self.down_l(fine)]))
        return flow

    def warp(self, coarse: Var, flow: Var) -> Var:
        """The coarse map (N, D, h, w) at a grid whose corners are its own, moved by the flow."""
        n, channels, *whole = coarse.shape
        height, width = flow.shape[2:]
        grid, scale = _grid(whole[0], whole[1], height, width)
        places = flow.reshape(n, 2, -1).permute(0, 2, 1) * jt.array(scale) + jt.array(grid)
        warped: Var = sample(coarse, places).reshape(n, channels, height, width)
        return warped


@lru_cache(maxsize=64)
def _grid(coarse_height: int, coarse_width: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (1, h * w, 2) of the fine cells in the coarse map, and how far (1, 1, 2) a flow of 1 moves them."""
    rows = np.linspace(0, coarse_height - 1, height)
    columns = np.linspace(0, coarse_width - 1, width)
    grid = np.stack(np.meshgrid(columns, rows), -1).reshape(1, -1, 2)
    scale = np.array([(coarse_width - 1) / 2 / width, (coarse_height - 1) / 2 / height])
    return grid.astype(np.float32), scale.reshape(1, 1, 2).astype(np.float32)


class SFNetHead(Head):
    """SFNet; see `SFNetSettings`."""

    backbone_options: ClassVar = {"output_stride": 32, "dilation": "full"}

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        fpn_dim: int | None,
        pool_sizes: Sequence[int],
        dropout: float,
        dsn: bool,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        dim = fpn_dim or (128 if coarsest <= _NARROW else 256)
        self.ppm = PyramidPooling(coarsest, dim, pool_sizes, "floor_ceil", dropout)
        self.fpn_in = nn.ModuleList([nn.Sequential(Conv2d(c, dim, 1), BatchNormReLU(dim)) for c in finer])
        self.fpn_out = nn.ModuleList([nn.Sequential(ConvNormReLU(dim, dim)) for _ in finer])
        self.fpn_out_align = nn.ModuleList([FlowAlign(dim) for _ in finer])
        self.dsn = nn.ModuleList([_classifier(dim, num_classes, dropout) for _ in finer]) if dsn else None
        self.conv_last = nn.Sequential(ConvNormReLU(len(in_channels) * dim, dim), FloatConv2d(dim, num_classes, 1))

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H/4, W/4), with `dsn` also to auxiliary ones of each finer level."""
        fused: Var = self.ppm(features[-1])
        levels, aux = [fused], []
        for i in reversed(range(len(features) - 1)):
            lateral = self.fpn_in[i](features[i])
            fused = maps.add(lateral, self.fpn_out_align[i](fused, lateral))
            levels.append(self.fpn_out[i](fused))
            if self.dsn is not None and self.is_training():
                aux.append(self.dsn[i](fused))
        finest = maps.size(levels[-1])
        pyramid = maps.concat([resize(level, finest) for level in reversed(levels)])
        return HeadOutput(self.conv_last(pyramid), aux_logits=tuple(aux))


def _classifier(dim: int, num_classes: int, dropout: float) -> nn.Sequential:
    """The auxiliary head of a level."""
    return nn.Sequential(
        Conv2d(dim, dim, 3, padding=1),
        BatchNormReLU(dim),
        nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
        ChannelDropout(dropout),
        FloatConv2d(dim, num_classes, 1),
    )
