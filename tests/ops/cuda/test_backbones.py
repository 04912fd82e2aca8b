"""Depthwise convolution, normalisation, GELU and scaled shortcuts on the GPU kernels, and networks made of them."""

from __future__ import annotations

from collections.abc import Callable

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.models.convnext import Block as ConvNeXtBlock
from pfseg.models.lightham import LightHam
from pfseg.models.mscan import Block as MSCANBlock
from pfseg.ops import kernels, maps
from pfseg.ops.depthwise import DepthwiseConv2d
from pfseg.ops.elementwise import gelu, scaled_add
from pfseg.ops.groupnorm import GroupNorm
from pfseg.ops.layernorm import LayerNorm2d
from pfseg.runtime import Var, jt

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
MODULES = {
    "7x7": lambda c: DepthwiseConv2d(c, 7),
    "1x11": lambda c: DepthwiseConv2d(c, (1, 11)),
    "dilated, without bias": lambda c: DepthwiseConv2d(c, 3, dilation=4, bias=False),
    "layer": lambda c: LayerNorm2d(c, 1e-5),
    "groups": lambda c: GroupNorm(c, groups=c // 3),
    "groups with ReLU": lambda c: GroupNorm(c, groups=c // 3, relu=True),
    "MSCAN": lambda c: MSCANBlock(c, 2, 0.0),
    "ConvNeXt": lambda c: ConvNeXtBlock(c, 0.0),
}


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def drawn(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays that 16 bits hold exactly."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if kernels.dtype() == "float32":
        return arrays
    return [maps.to_first(maps.to_last(jt.array(a))).numpy() if a.ndim == 4 else a for a in arrays]


def results(
    function: Callable[..., Var], given: list[Var], others: list[Var], upstream: np.ndarray
) -> list[np.ndarray]:
    """Output and gradients, of maps in channels-last layout where kernels are active."""
    if kernels.active():
        with maps.channels_last():
            y = maps.to_first(function(*(maps.to_last(x) if x.ndim == 4 else x for x in given)))
    else:
        y = function(*given)
    gradients = jt.grad((y * jt.array(upstream)).sum(), [*given, *others])
    return [value.numpy() for value in (y, *gradients)]


@pytest.mark.parametrize("channels", [24, 15])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_modules_as_on_a_cpu(emulated: str, make: Callable, channels: int) -> None:
    module = golden.fill(make(channels))
    module.train()
    for part in module.modules():
        if hasattr(part, "freeze"):
            part.freeze()
    x, upstream = drawn((2, channels, 9, 7), (2, channels, 9, 7))
    weights = [var for name, var in module.named_parameters() if "running" not in name]
    outside = module(jt.array(x)).numpy()
    got = results(module, [jt.array(x)], weights, upstream)
    with plain_cpu():
        expected = results(module, [jt.array(x)], weights, upstream)
    blocks = make in (MODULES["MSCAN"], MODULES["ConvNeXt"])
    tolerance = TOLERANCE[emulated] * (5 if blocks else 1)  # of a chain of operators
    floor = 1e-6 * max(map(np.linalg.norm, expected))  # biases before a normalisation have no gradient
    for a, b in zip((outside, *got), (expected[0], *expected), strict=True):
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b) + floor


def test_elementwise_as_on_a_cpu(emulated: str) -> None:
    x, y, upstream, scale = drawn(*[(2, 5, 9, 7)] * 3, (2, 5))
    for function, arrays in ((gelu, [3 * x]), (scaled_add, [x, y, scale])):
        arrays = [maps.to_first(maps.to_last(jt.array(a))).numpy() if a.ndim == 4 else a for a in arrays]
        got = results(function, list(map(jt.array, arrays)), [], upstream)
        with plain_cpu():
            expected = results(function, list(map(jt.array, arrays)), [], upstream)
        for a, b in zip(got, expected, strict=True):
            assert deviation(a, b) < TOLERANCE[emulated]


@pytest.mark.parametrize("emulated", ["fp32"], indirect=True)
def test_light_ham_as_on_a_cpu(emulated: str) -> None:
    head = golden.fill(LightHam((8, 8, 16, 24), 5, channels=32, rank=4, dropout=0.0))
    head.train()
    head.hamburger.ham.eval()
    arrays = drawn((2, 8, 8, 8), (2, 8, 8, 8), (2, 16, 4, 4), (2, 24, 2, 2), (2, 5, 8, 8))
    weights = list(head.parameters())

    def logits(*features: Var) -> Var:
        return head(features).logits

    got = results(logits, list(map(jt.array, arrays[:4])), weights, arrays[4])
    with plain_cpu():
        expected = results(logits, list(map(jt.array, arrays[:4])), weights, arrays[4])
    floor = 1e-5 * max(map(np.linalg.norm, expected))
    for a, b in zip(got, expected, strict=True):
        assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b) + floor
