"""UPerNet: pyramid pooling on the coarsest map of a feature pyramid (Xiao et al., ECCV 2018).

As in CSAILVision/semantic-segmentation-pytorch. Shapes: c1..c4 the backbone's maps; D = fpn_dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfseg.models import initial
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import FloatConv2d
from pfseg.ops.layers import ConvNormReLU
from pfseg.ops.resampling import adaptive_avg_pool, resize
from pfseg.runtime import Var, jt

nn = jt.nn

_BIAS = 1e-4  # of each batch norm at the start


class UPerNetHead(Head):
    """UPerNet; see `UPerNetSettings`."""

    channels_last = True
    align_corners = False

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, fpn_dim: int, pool_dim: int, pool_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pool_sizes = tuple(pool_sizes)
        self.ppm_conv = nn.ModuleList([ConvNormReLU(coarsest, pool_dim, 1) for _ in pool_sizes])
        self.ppm_last_conv = ConvNormReLU(coarsest + len(self.pool_sizes) * pool_dim, fpn_dim)
        self.fpn_in = nn.ModuleList([ConvNormReLU(channels, fpn_dim, 1) for channels in finer])
        self.fpn_out = nn.ModuleList([nn.Sequential(ConvNormReLU(fpn_dim, fpn_dim)) for _ in finer])
        classifier = FloatConv2d(fpn_dim, num_classes, 1)
        self.conv_last = nn.Sequential(ConvNormReLU(len(in_channels) * fpn_dim, fpn_dim), classifier)
        initial.kaiming(self, "fan_in")
        for norm in self.modules():
            if isinstance(norm, BatchNorm2d):
                nn.init.constant_(norm.bias, _BIAS)

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H/4, W/4)."""
        fused = self.ppm(features[-1])
        coarsest = fused
        levels: list[Var] = []
        for i in reversed(range(len(features) - 1)):
            lateral = self.fpn_in[i](features[i])
            fused = maps.add(lateral, resize(fused, maps.size(lateral), align_corners=False))
            levels.insert(0, self.fpn_out[i](fused))
        finest = maps.size(fused)
        wide = [resize(level, finest, align_corners=False) for level in (*levels, coarsest)]
        return HeadOutput(self.conv_last(maps.concat(wide)))

    def ppm(self, x: Var) -> Var:
        """Map c4 to (N, D, h, w)."""
        pooled = [x]
        for size, convolve in zip(self.pool_sizes, self.ppm_conv, strict=True):
            wide = resize(adaptive_avg_pool(x, size, "floor_ceil"), maps.size(x), align_corners=False)
            pooled.append(convolve(wide))
        y: Var = self.ppm_last_conv(maps.concat(pooled))
        return y
