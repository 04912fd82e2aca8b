"""Initial weights of convolutions, as the published networks draw them.

A convolution that none of these has touched keeps PyTorch's: uniform in ± 1 / sqrt(fan in), its bias too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

from pfseg.runtime import jt

nn = jt.nn


def convolutions(module: jt.nn.Module) -> Iterator[nn.Conv]:
    """Those of a module."""
    return (part for part in module.modules() if isinstance(part, nn.Conv))


def kaiming(module: jt.nn.Module, fan: str = "fan_out") -> None:
    """Normal with variance 2 / `fan` for every convolution, biases 0."""
    for part in convolutions(module):
        fan_out, fan_in, *kernel = part.weight.shape
        normal(part, sqrt(2 / (prod(kernel) * (fan_out if fan == "fan_out" else fan_in))))


def xavier(module: jt.nn.Module) -> None:
    """Uniform in ± sqrt(3 / fan in) for every convolution, biases 0."""
    for part in convolutions(module):
        bound = sqrt(3 / prod(part.weight.shape[1:]))
        nn.init.uniform_(part.weight, -bound, bound)
        _no_bias(part)


def normal(convolution: nn.Conv, deviation: float) -> None:
    """Normal with this deviation, bias 0."""
    nn.init.gauss_(convolution.weight, 0.0, deviation)
    _no_bias(convolution)


def _no_bias(convolution: nn.Conv) -> None:
    if convolution.bias is not None:
        nn.init.constant_(convolution.bias, 0.0)
