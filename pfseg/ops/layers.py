"""Layers made of the operators: BatchNorm with ReLU, adaptive pooling, channel dropout."""

from __future__ import annotations

import numpy as np

from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.elementwise import scaled_add
from pfseg.ops.resampling import adaptive_avg_pool
from pfseg.runtime import Var, jt, rank, world_size


class BatchNormReLU(BatchNorm2d):
    """`BatchNorm2d` whose ReLU is part of the same pass over memory (same parameter names)."""

    relu = True


class ConvNormReLU(jt.nn.Sequential):
    """Convolution of `size` x `size` without bias, batch norm, ReLU: keys `0.weight`, `1.*`."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3) -> None:
        convolution = Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
        super().__init__(convolution, BatchNormReLU(out_channels))


class ConvModule(jt.nn.Module):
    """The same with mmsegmentation's names: keys `conv.weight`, `bn.*`."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
        self.bn = BatchNormReLU(out_channels)

    def execute(self, x: Var) -> Var:
        """Map (N, C, h, w) to (N, D, h, w)."""
        y: Var = self.bn(self.conv(x))
        return y


class AdaptiveAvgPool(jt.nn.Module):
    """`adaptive_avg_pool` as a module without parameters."""

    def __init__(self, out: int, rule: str) -> None:
        super().__init__()
        self.out, self.rule = out, rule

    def execute(self, x: Var) -> Var:
        """Pool maps to (out, out)."""
        return adaptive_avg_pool(x, self.out, self.rule)


class Random(jt.nn.Module):
    """A layer that draws random numbers in training, for the batches of all ranks, of which each takes its part.

    The trainer sets `generator` anew for each step from (seed, step), so that a resumed run draws what the undisturbed
    one would have drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def draw(self, samples: int, *shape: int) -> np.ndarray:
        """Uniform random numbers (samples, *shape) float64 in [0, 1)."""
        own: np.ndarray = self.generator.random((world_size() * samples, *shape))[rank() * samples :][:samples]
        return own


class ChannelDropout(Random):
    """Zero whole channels with probability `p` in training mode and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def execute(self, x: Var) -> Var:
        """Drop channels of (N, C, H, W)."""
        if self.p == 0.0 or not self.is_training():
            return x
        kept = self.draw(x.shape[0], maps.channels(x)) >= self.p
        factors = jt.array((kept / (1.0 - self.p)).astype(np.float32))
        return maps.scale_channels(x, factors)


class ScaledShortcut(Random):
    """x + scale * y: a block's input and its branch, which in training is left out with probability `p` per sample.

    Branches that stay are multiplied by 1 / (1 - p) ("drop path", stochastic depth).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def execute(self, x: Var, y: Var, scale: Var) -> Var:
        """Add maps y, each channel by its `scale` (C,), to maps x."""
        kept = np.ones((x.shape[0], 1), np.float32)
        if self.p and self.is_training():
            kept = ((self.draw(x.shape[0], 1) >= self.p) / (1.0 - self.p)).astype(np.float32)
        return scaled_add(x, y, scale.reshape(1, -1) * jt.array(kept))
