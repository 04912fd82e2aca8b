"""ConvNeXt (Liu et al., CVPR 2022) as a backbone of segmentation: c1..c4 at strides 4, 8, 16, 32.

Source: facebookresearch/ConvNeXt, `semantic_segmentation/backbone/convnext.py`. Shapes: maps (N, C, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pfseg.models.mscan import drop_path_rates
from pfseg.models.network import Backbone
from pfseg.ops.convolution import Conv2d, Linear
from pfseg.ops.depthwise import DepthwiseConv2d
from pfseg.ops.elementwise import gelu
from pfseg.ops.layernorm import LayerNorm2d
from pfseg.ops.layers import ScaledShortcut
from pfseg.runtime import Var, jt

nn = jt.nn

_CHANNELS = (96, 192, 384, 768)
_SIZES = {"t": (3, 3, 9, 3), "s": (3, 3, 27, 3)}  # blocks of the stages
_EPS = 1e-6
# parts of a block in torchvision's files
_TORCHVISION = {"block.0": "dwconv", "block.2": "norm", "block.3": "pwconv1", "block.5": "pwconv2"}


class Block(jt.nn.Module):
    """A depthwise 7x7 convolution and two layers, whose result is scaled by a vector that is learnt."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, 7)
        self.norm = LayerNorm2d(channels, _EPS)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = jt.ones((channels,))
        self.add = ScaledShortcut(drop_path)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to the same size."""
        y: Var = self.add(x, self.pwconv2(gelu(self.pwconv1(self.norm(self.dwconv(x))))), self.gamma)
        return y


class ConvNeXt(Backbone):
    """ConvNeXt of size t or s with the published weight names (`downsample_layers`, `stages`, `norm0` ...).

    The next stage takes a stage's map as it is; what the head gets is normalised. `drop_path` as of `MSCAN`. Raises
    ValueError for other sizes.
    """

    feature_strides = (4, 8, 16, 32)
    out_channels = _CHANNELS
    channels_last = True
    fresh = ("norm0", "norm1", "norm2", "norm3")

    def __init__(self, size: str, drop_path: float, in_channels: int = 3) -> None:
        super().__init__()
        if size not in _SIZES:
            known = f"use one of {sorted(_SIZES)} (config: model.backbone)"
            raise ValueError(f"ConvNeXt of size {size!r} is unknown; {known}")
        first, *others = _CHANNELS
        stem = nn.Sequential(Conv2d(in_channels, first, 4, stride=4), LayerNorm2d(first, _EPS))
        halves = [
            nn.Sequential(LayerNorm2d(before, _EPS), Conv2d(before, after, 2, stride=2))
            for before, after in zip(_CHANNELS, others, strict=False)
        ]
        self.downsample_layers = nn.ModuleList([stem, *halves])
        rates = drop_path_rates(drop_path, _SIZES[size])
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*(Block(channels, rate) for rate in stage))
                for channels, stage in zip(_CHANNELS, rates, strict=True)
            ]
        )
        for stage, channels in enumerate(_CHANNELS):
            setattr(self, f"norm{stage}", LayerNorm2d(channels, _EPS))
        for part in self.modules():
            if isinstance(part, nn.Conv):
                nn.init.trunc_normal_(part.weight, std=0.02)
                part.bias = jt.zeros((part.weight.shape[0],))

    def execute(self, image: Var) -> list[Var]:
        """Map an image (N, in_channels, H, W) to c1..c4."""
        x, features = image, []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(downsample(x))
            features.append(getattr(self, f"norm{i}")(x))
        return features

    @property
    def segments(self) -> list[jt.nn.Module]:
        """The downsampling layers and the blocks."""
        return [*self.downsample_layers, *(block for stage in self.stages for block in stage)]

    @staticmethod
    def rename_pretrained(key: str, keys: Collection[str]) -> str:
        """Name of a weight of an ImageNet file, the authors' or torchvision's, in this network."""
        if key.startswith(("head.", "norm.", "classifier.")):
            return f"classifier.{key}"
        match = re.fullmatch(r"features\.(\d)\.(.*)", key)
        if match is None:
            return key
        index, rest = int(match[1]), match[2]
        if index % 2 == 0:
            return f"downsample_layers.{index // 2}.{rest}"
        for theirs, ours in _TORCHVISION.items():
            rest = rest.replace(f".{theirs}.", f".{ours}.")
        return f"stages.{index // 2}.{rest.replace('.layer_scale', '.gamma')}"
