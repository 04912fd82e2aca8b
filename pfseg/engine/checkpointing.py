"""Gradient checkpointing: the maps within a backbone's segments are computed again for their gradients, not kept.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from pfseg.errors import ConfigError
from pfseg.inference.folding import modules_of
from pfseg.models.network import layers_of
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import PackedWeights
from pfseg.ops.function import Function
from pfseg.ops.layers import Random
from pfseg.runtime import Var, jt
from pfseg.weights.transfer import Module


def checkpoint_segments(model: Module) -> None:
    """Let training keep nothing of the backbone's segments but their inputs (see `Backbone.segments`).

    On a CPU the backbone's maps, gradients and running statistics stay the same. Raises ConfigError if the network has
    no segments.
    """
    backbone = getattr(model, "backbone", None)
    segments: list[Module] = getattr(backbone, "segments", None) or layers_of(backbone)
    if not segments:
        raise ConfigError(
            f"trainer.checkpointing=true: {type(backbone or model).__name__} has neither `segments` nor layer0 to "
            "layer4 to compute again; give the backbone `segments` (see docs/training.md) or set it to false"
        )
    for segment in segments:
        _checkpoint(segment)


def _checkpoint(segment: Module) -> None:
    plain: Callable[[Var], Var] = segment.execute

    def execute(x: Var) -> Var:
        if jt.flags.no_grad or not segment.is_training():
            return plain(x)
        weights = [weight for weight in segment.parameters() if not weight.is_stop_grad()]
        y: Var = _Segment(segment, plain, weights)(x, *weights)
        return y

    segment.execute = execute


class _Segment(Function):
    """A segment as a function of its input and of the weights that learn."""

    def __init__(self, module: Module, plain: Callable[[Var], Var], weights: list[Var]) -> None:
        self.module, self.plain, self.weights = module, plain, weights
        self.generators = [deepcopy(layer.generator) for layer in modules_of(module, Random)]

    def execute(self, x: Var, *_: Var) -> Var:
        self.x, self.last = x, maps.is_last()
        with jt.no_grad():
            return self.plain(x)

    def grad(self, upstream: Var) -> list[Var]:
        x = self.x.detach()
        with self._as_before(), maps.channels_last(self.last), PackedWeights().of(self.module):
            y = _Follow(upstream)(self.plain(x))
        gradients: list[Var] = jt.grad(y, [x, *self.weights])
        return gradients

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Let the segment draw the random numbers that it has drawn, and leave the running statistics alone."""
        norms, random = modules_of(self.module, BatchNorm2d), modules_of(self.module, Random)
        generators = [layer.generator for layer in random]
        for layer, generator in zip(random, self.generators, strict=True):
            layer.generator = generator
        for norm in norms:
            norm.tracking = False
        try:
            yield
        finally:
            for layer, generator in zip(random, generators, strict=True):
                layer.generator = generator
            for norm in norms:
                norm.tracking = True


class _Follow(Function):
    """A number whose gradient by y is `upstream`."""

    def __init__(self, upstream: Var) -> None:
        self.upstream = upstream

    def execute(self, y: Var) -> Var:
        return jt.zeros((1,))

    def grad(self, _: Var) -> Var:
        return self.upstream
