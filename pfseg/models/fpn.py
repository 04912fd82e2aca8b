"""Semantic FPN: a feature pyramid whose levels are brought to the finest one and summed (Kirillov et al., CVPR 2019).

As in detectron2's `SemSegFPNHead`. Shapes: c1..c4 the backbone's maps at strides 4, 8, 16, 32; p2..p5 the pyramid's at
the same; D = fpn_dim, E = dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfseg.models import initial
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d
from pfseg.ops.groupnorm import GroupNorm
from pfseg.ops.resampling import resize, resize_nearest
from pfseg.runtime import Var, jt

nn = jt.nn


class FeaturePyramid(jt.nn.Module):
    """1x1 convolutions on c1..c4, sums from coarse to fine, and 3x3 convolutions on each; neither norm nor ReLU.

    The convolutions of a level are attributes named `names`, an inner and an outer one, and its number from `first` on.
    """

    def __init__(self, in_channels: Sequence[int], dim: int, names: tuple[str, str], first: int) -> None:
        super().__init__()
        self.inner, self.outer = ([f"{name}{first + i}" for i in range(len(in_channels))] for name in names)
        for inner, outer, channels in zip(self.inner, self.outer, in_channels, strict=True):
            setattr(self, inner, Conv2d(channels, dim, 1))
            setattr(self, outer, Conv2d(dim, dim, 3, padding=1))
        initial.xavier(self)

    def execute(self, features: Sequence[Var]) -> list[Var]:
        """Map c1..c4 to as many maps (N, D, h, w), fine to coarse."""
        merged: list[Var] = []
        for inner, feature in zip(reversed(self.inner), reversed(features), strict=True):
            lateral = getattr(self, inner)(feature)
            merged.append(maps.add(lateral, resize_nearest(merged[-1], maps.size(lateral))) if merged else lateral)
        return [getattr(self, outer)(level) for outer, level in zip(self.outer, reversed(merged), strict=True)]


class Upsample(jt.nn.Module):
    """Bilinear resizing to twice the sides."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, C, 2h, 2w)."""
        height, width = maps.size(x)
        return resize(x, (2 * height, 2 * width), self.align_corners)


class NormedConv(Conv2d):
    """3x3 convolution without bias, with its group norm and ReLU: keys `weight`, `norm.*`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = GroupNorm(out_channels, relu=True)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, E, h, w)."""
        y: Var = self.norm(super().execute(x))
        return y


class CoarseHead(jt.nn.Module):
    """Each level convolved and doubled until it has the size of the finest, then the sum and a classifier."""

    def __init__(self, levels: int, fpn_dim: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.names = [f"p{2 + i}" for i in range(levels)]
        for level, name in enumerate(self.names):
            layers: list[jt.nn.Module] = []
            for number in range(max(1, level)):
                layers += [NormedConv(dim if number else fpn_dim, dim), Upsample(align_corners=False)]
            setattr(self, name, nn.Sequential(*(layers if level else layers[:1])))
        self.predictor = Conv2d(dim, num_classes, 1)
        initial.kaiming(self)

    def execute(self, pyramid: Sequence[Var]) -> Var:
        """Map p2..p5 to logits (N, K, h, w) of the size of p2."""
        size = maps.size(pyramid[0])
        # not always that size already: 32 need not divide the image's sides
        parts = [resize(getattr(self, name)(x), size, False) for name, x in zip(self.names, pyramid, strict=True)]
        logits: Var = self.predictor(sum(parts[1:], parts[0]))
        return logits


class FPNHead(Head):
    """Semantic FPN; see `FPNSettings`."""

    align_corners = False
    strides = (4, 8, 16, 32)

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, fpn_dim: int, dim: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramid(in_channels, fpn_dim, ("fpn_lateral", "fpn_output"), first=2)
        self.coarse = CoarseHead(len(in_channels), fpn_dim, dim, num_classes)

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H/4, W/4)."""
        return HeadOutput(self.coarse(self.fpn(features)))
