"""Layers made of the operators: BatchNorm with ReLU, adaptive pooling, channel dropout."""

from __future__ import annotations

import numpy as np

from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.resampling import adaptive_avg_pool
from pfseg.runtime import Var, jt, rank, world_size


class BatchNormReLU(BatchNorm2d):
    """`BatchNorm2d` whose ReLU is part of the same pass over memory (same parameter names)."""

    relu = True


class ConvNormReLU(jt.nn.Sequential):
    """3x3 convolution without bias, batch norm, ReLU: keys `0.weight`, `1.*`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Conv2d(in_channels, out_channels, 3, padding=1, bias=False), BatchNormReLU(out_channels))


class AdaptiveAvgPool(jt.nn.Module):
    """`adaptive_avg_pool` as a module without parameters."""

    def __init__(self, out: int, rule: str) -> None:
        super().__init__()
        self.out, self.rule = out, rule

    def execute(self, x: Var) -> Var:
        """Pool maps to (out, out)."""
        return adaptive_avg_pool(x, self.out, self.rule)


class ChannelDropout(jt.nn.Module):
    """Zero whole channels with probability `p` in training mode and scale the others by 1 / (1 - p).

    The trainer sets `generator` anew for each step from (seed, step), so that a resumed run drops what the undisturbed
    one would have dropped. The mask is drawn for the batches of all ranks, of which each takes its part.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator = np.random.default_rng(0)

    def execute(self, x: Var) -> Var:
        """Drop channels of (N, C, H, W)."""
        if self.p == 0.0 or not self.is_training():
            return x
        n, c = x.shape[0], maps.channels(x)
        kept = self.generator.random((world_size() * n, c))[rank() * n :][:n] >= self.p
        factors = jt.array((kept / (1.0 - self.p)).astype(np.float32))
        return maps.scale_channels(x, factors)
