"""LightHam, the head of SegNeXt (Guo et al., NeurIPS 2022): context by matrix factorisation ("Hamburger").

Source: Visual-Attention-Network/SegNeXt, `mmseg/models/decode_heads/ham_head.py`. Shapes: H channels of the head, R
vectors of the bases, n = h * w positions of c2; matrices (N, H, n), (N, H, R) and (N, R, n).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from pfseg.models import initial
from pfseg.models.network import Head, HeadOutput
from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d, FloatConv2d, Product
from pfseg.ops.groupnorm import GroupNorm
from pfseg.ops.layers import ChannelDropout, Random
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

nn = jt.nn
TINY = 1e-6
STEPS = {True: 6, False: 7}  # in training, in evaluation


class ConvGroupNorm(jt.nn.Module):
    """A 1x1 convolution without bias and GroupNorm: keys `conv.weight`, `gn.*`."""

    def __init__(self, in_channels: int, out_channels: int, *, relu: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 1, bias=False)
        self.gn = GroupNorm(out_channels, relu=relu)

    def execute(self, x: Var) -> Var:
        """Map (N, in_channels, h, w) to (N, out_channels, h, w)."""
        y: Var = self.gn(self.conv(x))
        return y


class ConvReLU(jt.nn.Module):
    """A 1x1 convolution and ReLU: keys `conv.*`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 1)

    def execute(self, x: Var) -> Var:
        """Map (N, H, h, w) to the same size, without negative values."""
        return maps.relu(self.conv(x))


class Factorisation(Random):
    """What a few multiplicative steps find as the product of two non-negative matrices, through which gradients flow.

    The bases that it starts from are drawn anew for each step of a training, as published. Evaluation always takes the
    same, so that scores don't waver.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.channels, self.rank = channels, rank
        self.product = Product()

    def execute(self, y: Var) -> Var:
        """Approximate non-negative y (N, H, n)."""
        bases = jt.array(self.bases(y.shape[0]))
        coefficients = nn.softmax(self.product(bases.transpose(0, 2, 1), y), 1)  # (N, R, n)
        for _ in range(STEPS[self.is_training()]):
            coefficients = self._step(bases, coefficients, y)
            square = self.product(coefficients, coefficients.transpose(0, 2, 1))
            bases = bases * self.product(y, coefficients.transpose(0, 2, 1)) / (self.product(bases, square) + TINY)
        approximation: Var = self.product(bases, self._step(bases, coefficients, y))
        return approximation

    def _step(self, bases: Var, coefficients: Var, y: Var) -> Var:
        """Better coefficients (N, R, n)."""
        across = bases.transpose(0, 2, 1)
        product = self.product(self.product(across, bases), coefficients)
        better: Var = coefficients * self.product(across, y) / (product + TINY)
        return better

    def bases(self, n: int) -> np.ndarray:
        """Vectors (N, H, R) of length 1 that it starts from."""
        if self.is_training():
            drawn = self.draw(n, self.channels, self.rank)
        else:
            rng = np.random.default_rng(zlib.crc32(b"head.hamburger.ham.bases"))
            drawn = rng.random((1, self.channels, self.rank)).repeat(n, 0)
        bases: np.ndarray = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        return bases


class Hamburger(jt.nn.Module):
    """Context of the whole map: 1x1 convolution and ReLU, factorisation, 1x1 convolution and GroupNorm, shortcut."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.ham_in = ConvReLU(channels)
        self.ham = Factorisation(channels, rank)
        self.ham_out = ConvGroupNorm(channels, channels, relu=False)

    def execute(self, x: Var) -> Var:
        """Map (N, H, h, w) to the same size."""
        return maps.relu(maps.add(x, self.ham_out(self.factorise(x))))

    def factorise(self, x: Var) -> Var:
        """The part of the maps x that few vectors explain."""
        given = self.ham_in(x)
        last = maps.is_last()
        given = maps.to_first(given) if last else given  # float32 on every device
        n, channels, height, width = given.shape
        found = self.ham(given.reshape(n, channels, height * width)).reshape(given.shape)
        return maps.to_last(found) if last else found


class LightHam(Head):
    """SegNeXt's head on c2, c3 and c4: `channels` wide, with bases of `rank` vectors."""

    channels_last = True
    align_corners = False

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int, rank: int, dropout: float
    ) -> None:
        super().__init__()
        self.squeeze = ConvGroupNorm(sum(in_channels[1:]), channels, relu=True)
        self.hamburger = Hamburger(channels, rank)
        self.align = ConvGroupNorm(channels, channels, relu=True)
        self.dropout = ChannelDropout(dropout)
        self.conv_seg = FloatConv2d(channels, num_classes, 1)
        initial.kaiming(self)
        initial.normal(self.conv_seg, 0.01)

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits at the stride of c2."""
        size = maps.size(features[1])
        x = maps.concat([resize(x, size, align_corners=False) for x in features[1:]])
        return HeadOutput(self.conv_seg(self.dropout(self.align(self.hamburger(self.squeeze(x))))))
