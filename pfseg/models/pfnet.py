"""PFNet: a feature pyramid whose levels exchange semantics through points (Li et al., CVPR 2021, section 3).

Shapes: image (N, 3, H, W); c1..c4 the backbone's maps at strides 4, 8, 16, 32; D = fpn_dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pfseg.models.network import Backbone, Head, SegmentationNetwork
from pfseg.models.pointflow import PointFlow
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d, FloatConv2d
from pfseg.ops.layers import AdaptiveAvgPool, BatchNormReLU, ChannelDropout, ConvNormReLU
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn

# variant -> (sizes of the pyramid pooling, rule of adaptive pooling). The weights of the two families of published
# checkpoints have equal names and shapes; only these settings tell them apart.
VARIANTS: dict[str, tuple[tuple[int, ...], str]] = {
    "pytorch": ((1, 2, 3, 6), "floor_ceil"),
    "jittor": ((1, 2, 3, 7), "fixed_window"),
}


class PyramidPooling(jt.nn.Module):
    """Context from average pooling at several sizes (PSPNet's module, without ReLU in the stages)."""

    def __init__(self, in_channels: int, dim: int, sizes: Sequence[int], pooling: str, dropout: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(AdaptiveAvgPool(size, pooling), Conv2d(in_channels, dim, 1, bias=False), BatchNorm2d(dim))
                for size in sizes
            ]
        )
        self.bottleneck = nn.Sequential(
            Conv2d(in_channels + dim * len(sizes), dim, 1, bias=False),
            BatchNormReLU(dim),
            nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
            ChannelDropout(dropout),
        )

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, D, h, w)."""
        pooled = [resize(stage(x), maps.size(x)) for stage in self.stages]
        return self.bottleneck(maps.concat([*pooled, x]))


class PFNetHead(Head):
    """Pyramid pooling on the coarsest map, then PointFlow and fusion down to the finest; arguments as of `PFNet`."""

    channels_last = True

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        dim: int,
        match_dim: int,
        num_edge_points: int,
        edge_pool: int,
        salient_pool: int,
        pool_sizes: Sequence[int],
        pooling: str,
        dropout: float,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.ppm = PyramidPooling(coarsest, dim, pool_sizes, pooling, dropout)
        self.fpn_in = nn.ModuleList([nn.Sequential(Conv2d(c, dim, 1), BatchNormReLU(dim)) for c in finer])
        self.fpn_out = nn.ModuleList([nn.Sequential(ConvNormReLU(dim, dim)) for _ in finer])
        self.fpn_out_align = nn.ModuleList(
            [PointFlow(dim, match_dim, num_edge_points, edge_pool, salient_pool, pooling) for _ in finer]
        )
        self.conv_last = nn.Sequential(ConvNormReLU(len(in_channels) * dim, dim), FloatConv2d(dim, num_classes, 1))

    def execute(self, features: Sequence[Var]) -> tuple[Var, tuple[Var, ...]]:
        """Map c1..c4 to logits (N, K, H/4, W/4) and edge logits at 1/32, 1/16 and 1/8, coarse to fine."""
        fused: Var = self.ppm(features[-1])
        levels, edges = [fused], []
        for i in reversed(range(len(features) - 1)):
            lateral = self.fpn_in[i](features[i])
            fused, edge = self.fpn_out_align[i](fused, lateral)
            fused = maps.add(lateral, fused)
            levels.append(self.fpn_out[i](fused))
            edges.append(edge)
        finest = maps.size(levels[-1])
        pyramid = maps.concat([resize(level, finest) for level in reversed(levels)])
        return self.conv_last(pyramid), tuple(edges)


class PFNet(SegmentationNetwork):
    """PFNet on any backbone, with the published names of weights (`layer0` .. `layer4`, `head.*`).

    See `pfseg.config.model_settings.PFNetSettings` for the settings. A checkpoint of the variant `pytorch` (official
    repository) loads into `jittor` (Jittor port), which pools differently, without complaint and scores badly. Raises
    ValueError for another variant.
    """

    backbone_options: ClassVar = {"output_stride": 32, "dilation": "full"}

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        variant: str,
        num_edge_points: int,
        match_dim: int,
        fpn_dim: int,
        edge_pool: int,
        salient_pool: int,
        pool_sizes: Sequence[int] | None,
        dropout: float,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is unknown; use one of {sorted(VARIANTS)} (config: model.variant)")
        sizes, pooling = VARIANTS[variant]
        head = PFNetHead(
            backbone.out_channels,
            num_classes=num_classes,
            dim=fpn_dim,
            match_dim=match_dim,
            num_edge_points=num_edge_points,
            edge_pool=edge_pool,
            salient_pool=salient_pool,
            pool_sizes=pool_sizes or sizes,
            pooling=pooling,
            dropout=dropout,
        )
        super().__init__(backbone, head, num_classes)
        self.variant = variant
        # Fixed windows need as many cells as they make.
        self.min_size = 64 if variant == "pytorch" else self.output_stride * max(salient_pool, edge_pool)

    def _describe(self) -> str:
        return f"variant {self.variant!r}"
