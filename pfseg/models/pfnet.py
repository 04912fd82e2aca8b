"""PFNet: a feature pyramid whose levels exchange semantics through points (Li et al., CVPR 2021, section 3).

Shapes: image (N, 3, H, W); c1..c4 the backbone's maps at strides 4, 8, 16, 32; D = fpn_dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfseg.models.pointflow import PointFlow
from pfseg.ops import resampling as ops
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.resampling import BatchNormReLU, ConvNormReLU
from pfseg.runtime import jt

nn = jt.nn
Var = Any  # jittor.Var, which ships no types

# variant -> (sizes of the pyramid pooling, rule of adaptive pooling). The weights of the two families of published
# checkpoints have equal names and shapes; only these settings tell them apart.
VARIANTS: dict[str, tuple[tuple[int, ...], str]] = {
    "pytorch": ((1, 2, 3, 6), "floor_ceil"),
    "jittor": ((1, 2, 3, 7), "fixed_window"),
}


@dataclass(frozen=True)
class SegOutput:
    """What a segmentation network returns, in training and in evaluation mode.

    Attributes:
        logits: (N, K, H, W) float32 at the input's size.
        edge_logits: (N, 1, H, W) float32 each, coarse to fine; empty where the edges were left out.
    """

    logits: Var
    edge_logits: tuple[Var, ...] = ()


class PyramidPooling(jt.nn.Module):
    """Context from average pooling at several sizes (PSPNet's module, without ReLU in the stages)."""

    def __init__(self, in_channels: int, dim: int, sizes: Sequence[int], pooling: str, dropout: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ops.AdaptiveAvgPool(size, pooling), Conv2d(in_channels, dim, 1, bias=False), BatchNorm2d(dim)
                )
                for size in sizes
            ]
        )
        self.bottleneck = nn.Sequential(
            Conv2d(in_channels + dim * len(sizes), dim, 1, bias=False),
            BatchNormReLU(dim),
            nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
            ops.ChannelDropout(dropout),
        )

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, D, h, w)."""
        pooled = [ops.resize(stage(x), x.shape[2:]) for stage in self.stages]
        return self.bottleneck(jt.concat([*pooled, x], 1))


class PFNetHead(jt.nn.Module):
    """Pyramid pooling on c4, then PointFlow and fusion down to c1."""

    def __init__(
        self,
        in_channels: Sequence[int],
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
        self.ppm = PyramidPooling(in_channels[-1], dim, pool_sizes, pooling, dropout)
        self.fpn_in = nn.ModuleList([nn.Sequential(Conv2d(c, dim, 1), BatchNormReLU(dim)) for c in in_channels[:-1]])
        self.fpn_out = nn.ModuleList([nn.Sequential(ConvNormReLU(dim, dim)) for _ in in_channels[:-1]])
        self.fpn_out_align = nn.ModuleList(
            [PointFlow(dim, match_dim, num_edge_points, edge_pool, salient_pool, pooling) for _ in in_channels[:-1]]
        )
        self.conv_last = nn.Sequential(ConvNormReLU(len(in_channels) * dim, dim), Conv2d(dim, num_classes, 1))

    def execute(self, features: Sequence[Var]) -> tuple[Var, tuple[Var, ...]]:
        """Map c1..c4 to logits (N, K, H/4, W/4) and edge logits at 1/32, 1/16 and 1/8, coarse to fine."""
        fused = self.ppm(features[-1])
        levels, edges = [fused], []
        for i in reversed(range(len(features) - 1)):
            lateral = self.fpn_in[i](features[i])
            fused, edge = self.fpn_out_align[i](fused, lateral)
            fused = lateral + fused
            levels.append(self.fpn_out[i](fused))
            edges.append(edge)
        finest = levels[-1].shape[2:]
        pyramid = jt.concat([ops.resize(level, finest) for level in reversed(levels)], 1)
        return self.conv_last(pyramid), tuple(edges)


class PFNet(jt.nn.Module):
    """PFNet with the published state-dict keys (`layer0` .. `layer4`, `head.*`).

    Args:
        backbone: module with `layer0` .. `layer4`, `out_channels` and `feature_strides`.
        num_classes: K.
        variant: `pytorch` (official repository) or `jittor` (Jittor port): sizes and rule of the poolings. A
            checkpoint of one family loads into the other without complaint and scores badly.
        num_edge_points: boundary points a level; 0 leaves their flow out.
        match_dim: channels of the point matcher.
        fpn_dim: channels of the pyramid.
        edge_pool: side of the pooled certainty in the boundary branch.
        salient_pool: side of the pooled certainty in the saliency branch; 0 leaves its flow out.
        pool_sizes: sizes of the pyramid pooling; None for the variant's.
        dropout: probability of the channel dropout behind the pyramid pooling.

    Attributes:
        min_size: smallest side of the input in pixels.
        output_stride: 32.

    Raises:
        ValueError: unknown `variant`.
    """

    output_stride = 32

    def __init__(
        self,
        backbone: Any,
        num_classes: int,
        variant: str = "pytorch",
        num_edge_points: int = 128,
        match_dim: int = 64,
        fpn_dim: int = 256,
        edge_pool: int = 9,
        salient_pool: int = 14,
        pool_sizes: Sequence[int] | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is unknown; use one of {sorted(VARIANTS)} (config: model.variant)")
        sizes, pooling = VARIANTS[variant]
        self.variant = variant
        self.num_classes = num_classes
        self.min_size = 64 if variant == "pytorch" else 32 * max(salient_pool, edge_pool)
        for i in range(5):
            setattr(self, f"layer{i}", getattr(backbone, f"layer{i}"))
        self.head = PFNetHead(
            backbone.out_channels,
            num_classes,
            fpn_dim,
            match_dim,
            num_edge_points,
            edge_pool,
            salient_pool,
            pool_sizes or sizes,
            pooling,
            dropout,
        )

    def features(self, image: Var) -> list[Var]:
        """Backbone maps c1..c4 of a normalised image (N, 3, H, W)."""
        if min(image.shape[2:]) < self.min_size:
            raise ValueError(
                f"input of {image.shape[2]}x{image.shape[3]} px is too small: variant {self.variant!r} needs at least "
                f"{self.min_size} px a side; pad the image or use a larger crop (config: dataset.crop_size)"
            )
        x = self.layer0(image)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def execute(self, image: Var) -> SegOutput:
        """Segment a normalised image (N, 3, H, W) float32; raises ValueError below `min_size`."""
        logits, edges = self.head(self.features(image))
        size = image.shape[2:]
        return SegOutput(ops.resize(logits, size), tuple(ops.resize(edge, size) for edge in edges))

    def predict(self, image: Var) -> Var:
        """Logits (N, K, H, W) alone, without the work of resizing the edge maps."""
        logits, _ = self.head(self.features(image))
        return ops.resize(logits, image.shape[2:])
