"""SegNeXt-T in PyTorch with pfseg's weights, channels last, for comparison only: `benchmarks/speed.py` starts it.

Run as `python torch_segnext.py <folder>`; see `torch_pfnet.py`, of which it takes the protocol.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_pfnet import take_turns

CHANNELS, BLOCKS, RATIOS = (32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4)
WIDTH, RANK = 256, 16


class LayerNorm(nn.LayerNorm):
    """Over the channels of maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gating(nn.Module):
    """As `pfseg.models.mscan.SpatialGating`."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(c, c, 5, padding=2, groups=c)
        for i, k in enumerate((7, 11, 21)):
            setattr(self, f"conv{i}_1", nn.Conv2d(c, c, (1, k), padding=(0, k // 2), groups=c))
            setattr(self, f"conv{i}_2", nn.Conv2d(c, c, (k, 1), padding=(k // 2, 0), groups=c))
        self.conv3 = nn.Conv2d(c, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weight maps by their surroundings."""
        a = self.conv0(x)
        strips = [getattr(self, f"conv{i}_2")(getattr(self, f"conv{i}_1")(a)) for i in range(3)]
        return self.conv3(a + strips[0] + strips[1] + strips[2]) * x


class Attention(nn.Module):
    """As in `pfseg.models.mscan`."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.proj_1, self.proj_2 = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.spatial_gating_unit = Gating(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, h, w) to the same size."""
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x


class Mlp(nn.Module):
    """As in `pfseg.models.mscan`."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, hidden, 1), nn.Conv2d(hidden, c, 1)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, h, w) to the same size."""
        return self.fc2(F.gelu(self.dwconv["dwconv"](self.fc1(x))))


class Block(nn.Module):
    """As in `pfseg.models.mscan`, without drop path."""

    def __init__(self, c: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        self.attn, self.mlp = Attention(c), Mlp(c, c * ratio)
        self.layer_scale_1, self.layer_scale_2 = nn.Parameter(torch.ones(c)), nn.Parameter(torch.ones(c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, h, w) to the same size."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Convolution of stride 2 and BatchNorm."""

    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(c_in, c, 3, 2, 1), nn.BatchNorm2d(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C', h, w) to (N, C, h/2, w/2)."""
        return self.norm(self.proj(x))


class ConvNorm(nn.Module):
    """1x1 convolution and GroupNorm."""

    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.conv, self.gn = nn.Conv2d(c_in, c, 1, bias=False), nn.GroupNorm(32, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C', h, w) to (N, C, h, w)."""
        return self.gn(self.conv(x))


class Hamburger(nn.Module):
    """As in `pfseg.models.lightham`."""

    def __init__(self) -> None:
        super().__init__()
        self.ham_in = nn.ModuleDict({"conv": nn.Conv2d(WIDTH, WIDTH, 1)})
        self.ham_out = ConvNorm(WIDTH, WIDTH)
        rng = np.random.default_rng(zlib.crc32(b"head.hamburger.ham.bases"))
        self.fixed = torch.from_numpy(rng.random((1, WIDTH, RANK)).astype(np.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, H, h, w) to the same size."""
        y = F.relu(self.ham_in["conv"](x)).flatten(2)
        bases = torch.rand(len(x), WIDTH, RANK) if self.training else self.fixed.repeat(len(x), 1, 1)
        bases = F.normalize(bases, dim=1)
        a = torch.softmax(torch.bmm(y.transpose(1, 2), bases), -1)
        for _ in range(6 if self.training else 7):
            a = self.step(y, bases, a)
            bases = bases * torch.bmm(y, a) / (bases.bmm(a.transpose(1, 2).bmm(a)) + 1e-6)
        z = torch.bmm(bases, self.step(y, bases, a).transpose(1, 2)).view_as(x)
        return F.relu(x + self.ham_out(z), inplace=True)

    @staticmethod
    def step(y: torch.Tensor, bases: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Better coefficients (N, n, R)."""
        return a * torch.bmm(y.transpose(1, 2), bases) / (a.bmm(bases.transpose(1, 2).bmm(bases)) + 1e-6)


class Head(nn.Module):
    """LightHam without dropout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.squeeze, self.align = ConvNorm(sum(CHANNELS[1:]), WIDTH), ConvNorm(WIDTH, WIDTH)
        self.hamburger = Hamburger()
        self.conv_seg = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits at the stride of c2."""
        x = torch.cat([F.interpolate(x, features[1].shape[2:], mode="bilinear") for x in features[1:]], 1)
        x = self.hamburger(F.relu(self.squeeze(x), inplace=True))
        return self.conv_seg(F.relu(self.align(x), inplace=True))


class SegNeXt(nn.Module):
    """SegNeXt-T."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        c_in = 3
        for stage, (c, count, ratio) in enumerate(zip(CHANNELS, BLOCKS, RATIOS, strict=True), 1):
            embed: nn.Module = Embedding(c_in, c)
            if stage == 1:
                first, second = nn.Conv2d(3, c // 2, 3, 2, 1), nn.Conv2d(c // 2, c, 3, 2, 1)
                layers = [first, nn.BatchNorm2d(c // 2), nn.GELU(), second, nn.BatchNorm2d(c)]
                embed = nn.Sequential()
                embed.add_module("proj", nn.Sequential(*layers))
            setattr(self, f"patch_embed{stage}", embed)
            setattr(self, f"block{stage}", nn.Sequential(*(Block(c, ratio) for _ in range(count))))
            setattr(self, f"norm{stage}", LayerNorm(c, 1e-5))
            c_in = c
        self.head = Head(classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, H, W)."""
        x, features = image, []
        for stage in range(1, 5):
            x = getattr(self, f"patch_embed{stage}")(x)
            x = getattr(self, f"norm{stage}")(getattr(self, f"block{stage}")(x))
            features.append(x)
        return F.interpolate(self.head(features), image.shape[2:], mode="bilinear")


def main() -> None:
    """Serve forward passes or training steps."""
    folder = Path(sys.argv[1])
    weights = {key: torch.from_numpy(value) for key, value in np.load(folder / "weights.npz").items()}
    model = SegNeXt(weights["head.conv_seg.bias"].shape[0]).eval()
    found = model.load_state_dict(weights, strict=False)
    lost = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    assert not lost and not found.unexpected_keys, (lost, found.unexpected_keys)
    take_turns(model.to(memory_format=torch.channels_last), folder, torch.channels_last)


if __name__ == "__main__":
    main()
