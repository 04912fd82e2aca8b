"""Networks that only predict: as functions of NumPy arrays, and with BatchNorm folded into convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pfseg.models.network import SegmentationNetwork
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.ops.scores import most_probable_class
from pfseg.runtime import jt, memory_advice
from pfseg.weights.transfer import Module, Var

Conv = jt.nn.Conv
Execute = Callable[..., Var]
Wrapped = TypeVar("Wrapped", bound=Module)


@dataclass(frozen=True)
class JittorNetwork:
    """The `predict` of a network in evaluation mode, without gradients: a `pfseg.inference.views.Network`."""

    predict: Callable[[Var], Var]

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Logits (N, K, h, w) float32 of a normalised batch."""
        return self._run(batch)

    def labels(self, batch: np.ndarray) -> np.ndarray:
        """Most probable class (N, h, w) uint8: only that leaves the device."""
        return self._run(batch, most_probable_class)

    def _run(self, batch: np.ndarray, last: Callable[[Var], Var] = lambda logits: logits) -> np.ndarray:
        with jt.no_grad(), memory_advice("lower batch_size or the size of the windows"):
            found: np.ndarray = last(self.predict(jt.array(batch))).numpy()
        return found


def fold_batchnorm(model: SegmentationNetwork) -> int:
    """Multiply each BatchNorm's scale into the convolution that it follows, which takes over its ReLU too.

    A small image is sent through the network to see which convolution that is. Outputs stay the same up to rounding;
    the network is in evaluation mode, and can no longer be trained.

    Returns:
        Number of BatchNorms folded; those that follow something other than a convolution stay.
    """
    model.eval()
    pairs = _find_pairs(model)
    for convolution, norm in pairs:
        scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
        bias = 0.0 if convolution.bias is None else convolution.bias.numpy()
        shift = norm.bias.numpy() + (bias - norm.running_mean.numpy()) * scale
        convolution.weight.assign(jt.array(convolution.weight.numpy() * scale[:, None, None, None]))
        convolution.bias = jt.array(shift.astype(np.float32))
        if isinstance(convolution, Conv2d):  # takes the ReLU into its own pass
            convolution.relu, norm.relu = norm.relu, False
        norm.fold()
    return len(pairs)


def _find_pairs(model: SegmentationNetwork) -> list[tuple[Conv, BatchNorm2d]]:
    """Convolutions with the BatchNorm that their output goes to."""
    outputs: list[tuple[Var, Conv]] = []  # held, so that no other output gets the same identity
    pairs: list[tuple[Conv, BatchNorm2d]] = []

    def convolution(module: Conv, execute: Execute) -> Execute:
        def call(x: Var) -> Var:
            outputs.append((execute(x), module))
            return outputs[-1][0]

        return call

    def norm(module: BatchNorm2d, execute: Execute) -> Execute:
        def call(x: Var) -> Var:
            pairs.extend((source, module) for y, source in outputs if y is x)
            return execute(x)

        return call

    with jt.no_grad(), wrapped(modules_of(model, Conv), convolution), wrapped(modules_of(model, BatchNorm2d), norm):
        side = max(64, getattr(model, "min_size", 1))
        model.predict(jt.zeros((1, getattr(model, "in_channels", 3), side, side)))
    return pairs


def modules_of(model: Module, kind: type[Wrapped]) -> list[Wrapped]:
    """All modules of a kind in a network."""
    return [module for module in model.modules() if isinstance(module, kind)]


@contextmanager
def wrapped(modules: Sequence[Wrapped], wrap: Callable[[Wrapped, Execute], Execute]) -> Iterator[None]:
    """Let calls of these modules go through `wrap(module, execute)`."""
    before = [vars(module).get("execute") for module in modules]
    for module in modules:
        module.execute = wrap(module, module.execute)
    try:
        yield
    finally:
        for module, execute in zip(modules, before, strict=True):
            if execute is None:
                del module.execute  # that of the class again
            else:
                module.execute = execute
