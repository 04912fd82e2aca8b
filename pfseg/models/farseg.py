"""FarSeg: a pyramid whose levels are weighted by how their pixels relate to the whole scene (Zheng et al., CVPR 2020).

As in Z-Zheng/FarSeg. Shapes: c1..c4 the backbone's maps at strides 4, 8, 16, 32; D = fpn_dim, E = dim; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfseg.models.fpn import FeaturePyramid, Upsample
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d
from pfseg.ops.layers import BatchNormReLU, ConvNormReLU
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn


class SceneRelation(jt.nn.Module):
    """Each level times the sigmoid of its pixels' products with a vector of the scene."""

    def __init__(self, scene: int, dim: int, levels: int) -> None:
        super().__init__()
        self.scene_encoder = nn.ModuleList(
            [nn.Sequential(Conv2d(scene, dim, 1), nn.ReLU(), Conv2d(dim, dim, 1)) for _ in range(levels)]
        )
        self.content_encoders, self.feature_reencoders = (
            nn.ModuleList([nn.Sequential(Conv2d(dim, dim, 1), BatchNormReLU(dim)) for _ in range(levels)])
            for _ in range(2)
        )

    def execute(self, scene: Var, pyramid: Sequence[Var]) -> list[Var]:
        """Map the scene (N, C, 1, 1) and levels (N, D, h, w) to as many of the same size."""
        refined = []
        for i, level in enumerate(pyramid):
            content = self.content_encoders[i](level)
            vector = self.scene_encoder[i](scene).reshape(*content.shape[:2]).broadcast(content, [2, 3])
            relation = jt.sigmoid((vector * content).sum(1, keepdims=True))
            refined.append(relation * self.feature_reencoders[i](level))
        return refined


class Decoder(jt.nn.Module):
    """Each level convolved and doubled until it has the size of the finest, and their mean."""

    def __init__(self, in_channels: int, dim: int, levels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_block(in_channels, dim, level) for level in range(levels)])

    def execute(self, pyramid: Sequence[Var]) -> Var:
        """Map levels (N, D, h, w) to (N, E, h, w) of the size of the finest."""
        size = maps.size(pyramid[0])
        # not always that size already: 32 need not divide the image's sides
        parts = [resize(block(x), size) for block, x in zip(self.blocks, pyramid, strict=True)]
        return sum(parts[1:], parts[0]) / len(parts)


def _block(in_channels: int, dim: int, level: int) -> nn.Sequential:
    layers = []
    for number in range(max(1, level)):
        parts = ConvNormReLU(dim if number else in_channels, dim)
        layers.append(nn.Sequential(*parts, nn.Identity(), *([Upsample(align_corners=True)] if level else [])))
    return nn.Sequential(*layers)


class FarSegHead(Head):
    """FarSeg; see `FarSegSettings`."""

    strides = (4, 8, 16, 32)

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, fpn_dim: int, dim: int) -> None:
        super().__init__()
        levels = len(in_channels)
        self.fpn = FeaturePyramid(in_channels, fpn_dim, ("fpn_inner", "fpn_layer"), first=1)
        self.sr = SceneRelation(in_channels[-1], fpn_dim, levels)
        self.decoder = Decoder(fpn_dim, dim, levels)
        self.cls_pred_conv = Conv2d(dim, num_classes, 1)

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H/4, W/4)."""
        scene = features[-1].mean([2, 3], keepdims=True)
        return HeadOutput(self.cls_pred_conv(self.decoder(self.sr(scene, self.fpn(features)))))
