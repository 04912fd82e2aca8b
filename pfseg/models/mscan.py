"""MSCAN, the backbone of SegNeXt (Guo et al., NeurIPS 2022): c1..c4 at strides 4, 8, 16, 32.

Source: Visual-Attention-Network/SegNeXt, `mmseg/models/backbones/mscan.py`. Shapes: maps (N, C, h, w).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pfseg.models.network import Backbone
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.depthwise import DepthwiseConv2d
from pfseg.ops.elementwise import gelu
from pfseg.ops.layernorm import LayerNorm2d
from pfseg.ops.layers import ScaledShortcut
from pfseg.runtime import Var, jt

nn = jt.nn

# size -> (channels, blocks) of the four stages
_SIZES = {
    "t": ((32, 64, 160, 256), (3, 3, 5, 2)),
    "s": ((64, 128, 320, 512), (2, 2, 4, 2)),
    "b": ((64, 128, 320, 512), (3, 3, 12, 3)),
}
_MLP_RATIOS = (8, 8, 4, 4)
_STRIPS = (7, 11, 21)  # lengths of the pairs of strip convolutions


class Gelu(jt.nn.Module):
    """`gelu` as a module without parameters."""

    def execute(self, x: Var) -> Var:
        """Apply it."""
        return gelu(x)


class SpatialGating(jt.nn.Module):
    """The input, weighted by its surroundings, which strips of several lengths see."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = DepthwiseConv2d(channels, 5)
        for i, length in enumerate(_STRIPS):
            setattr(self, f"conv{i}_1", DepthwiseConv2d(channels, (1, length)))
            setattr(self, f"conv{i}_2", DepthwiseConv2d(channels, (length, 1)))
        self.conv3 = Conv2d(channels, channels, 1)

    def execute(self, x: Var) -> Var:
        """Weight maps."""
        around = self.conv0(x)
        seen = around
        for i in range(len(_STRIPS)):
            seen = seen + getattr(self, f"conv{i}_2")(getattr(self, f"conv{i}_1")(around))
        return self.conv3(seen) * x


class Attention(jt.nn.Module):
    """Convolutional attention with its shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = Conv2d(channels, channels, 1)
        self.spatial_gating_unit = SpatialGating(channels)
        self.proj_2 = Conv2d(channels, channels, 1)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to the same size."""
        return maps.add(self.proj_2(self.spatial_gating_unit(gelu(self.proj_1(x)))), x)


class DepthwiseLayer(jt.nn.Module):
    """A depthwise 3x3 convolution under the published name `dwconv.dwconv`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, 3)

    def execute(self, x: Var) -> Var:
        """Convolve maps."""
        y: Var = self.dwconv(x)
        return y


class Mlp(jt.nn.Module):
    """Two 1x1 convolutions, between them a depthwise one and GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Conv2d(channels, hidden, 1)
        self.dwconv = DepthwiseLayer(hidden)
        self.fc2 = Conv2d(hidden, channels, 1)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to the same size."""
        y: Var = self.fc2(gelu(self.dwconv(self.fc1(x))))
        return y


class Block(jt.nn.Module):
    """Attention and MLP, each behind a BatchNorm and scaled by a vector that is learnt."""

    def __init__(self, channels: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = BatchNorm2d(channels)
        self.attn = Attention(channels)
        self.norm2 = BatchNorm2d(channels)
        self.mlp = Mlp(channels, channels * ratio)
        self.layer_scale_1 = jt.array(np.full(channels, 0.01, np.float32))
        self.layer_scale_2 = jt.array(np.full(channels, 0.01, np.float32))
        self.add_1, self.add_2 = ScaledShortcut(drop_path), ScaledShortcut(drop_path)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to the same size."""
        x = self.add_1(x, self.attn(self.norm1(x)), self.layer_scale_1)
        y: Var = self.add_2(x, self.mlp(self.norm2(x)), self.layer_scale_2)
        return y


class Stem(jt.nn.Module):
    """Two convolutions of stride 2, to stride 4."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.proj = nn.Sequential(
            Conv2d(in_channels, half, 3, stride=2, padding=1),
            BatchNorm2d(half),
            Gelu(),
            Conv2d(half, channels, 3, stride=2, padding=1),
            BatchNorm2d(channels),
        )

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, H, W) to (N, C, H/4, W/4)."""
        y: Var = self.proj(x)
        return y


class PatchEmbedding(jt.nn.Module):
    """A convolution of stride 2 between two stages."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = BatchNorm2d(channels)

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, C, h/2, w/2)."""
        y: Var = self.norm(self.proj(x))
        return y


class MSCAN(Backbone):
    """MSCAN of size t, s or b with the published weight names (`patch_embed1`, `block1`, `norm1`, ...).

    `drop_path` is the probability with which the last block's branches are left out in training; that of the first is
    0, and those between lie on a line. Raises ValueError for other sizes.
    """

    feature_strides = (4, 8, 16, 32)
    channels_last = True

    def __init__(self, size: str, drop_path: float, in_channels: int = 3) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ValueError(f"MSCAN of size {size!r} is unknown; use one of {sorted(_SIZES)} (config: model.backbone)")
        self.out_channels, counts = _SIZES[size]
        rates = drop_path_rates(drop_path, counts)
        before = in_channels
        for stage, (channels, ratio) in enumerate(zip(self.out_channels, _MLP_RATIOS, strict=True), 1):
            embed = Stem(before, channels) if stage == 1 else PatchEmbedding(before, channels)
            setattr(self, f"patch_embed{stage}", embed)
            blocks = [Block(channels, ratio, rate) for rate in rates[stage - 1]]
            setattr(self, f"block{stage}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage}", LayerNorm2d(channels, eps=1e-5))
            before = channels
        _initialise(self)

    def execute(self, image: Var) -> list[Var]:
        """Map an image (N, in_channels, H, W) to c1..c4."""
        x, features = image, []
        for stage in range(1, 5):
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x)
            x = getattr(self, f"norm{stage}")(x)
            features.append(x)
        return features

    @property
    def segments(self) -> list[jt.nn.Module]:
        """The patch embeddings and the blocks."""
        numbers = range(1, 5)
        blocks = [block for number in numbers for block in getattr(self, f"block{number}")]
        return [*(getattr(self, f"patch_embed{number}") for number in numbers), *blocks]

    @staticmethod
    def rename_pretrained(key: str, keys: Collection[str]) -> str:
        """Name of a weight of an ImageNet file in this network; mmsegmentation's lack one of two `dwconv`."""
        if key.startswith("head."):
            return f"classifier.{key}"  # not the decoder
        return key if ".dwconv.dwconv." in key else key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")


def drop_path_rates(last: float, counts: Sequence[int]) -> list[list[float]]:
    """Probabilities on a line from 0 at the first block to `last`, by stage."""
    rates = np.linspace(0.0, last, sum(counts)).tolist()
    starts = np.cumsum([0, *counts])
    return [rates[start : start + count] for start, count in zip(starts, counts, strict=False)]


def _initialise(module: jt.nn.Module) -> None:
    """Normal by the fan out of a convolution's group, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv):
            k, _, height, width = part.weight.shape
            nn.init.gauss_(part.weight, 0.0, (2.0 / (height * width * k / part.groups)) ** 0.5)
            part.bias = jt.zeros((k,))
