"""LayerNorm and GroupNorm against their formulas and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pfseg.ops.groupnorm import GroupNorm
from pfseg.ops.layernorm import LayerNorm2d
from pfseg.runtime import jt

EPS = 1e-3  # large, so that leaving it out shows


def normalised(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPS)


def by_layer(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return normalised(x, (1,)) * weight[:, None, None] + bias[:, None, None]


def by_groups(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    groups = normalised(x.reshape(x.shape[0], 4, -1), (2,)).reshape(x.shape)
    return groups * weight[:, None, None] + bias[:, None, None]


def by_groups_with_relu(*given: np.ndarray) -> np.ndarray:
    return np.maximum(by_groups(*given), 0)


CASES = {
    "layer": (lambda: LayerNorm2d(8, EPS), by_layer),
    "groups": (lambda: GroupNorm(8, groups=4, eps=EPS), by_groups),
    "groups with ReLU": (lambda: GroupNorm(8, groups=4, eps=EPS, relu=True), by_groups_with_relu),
}


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("make", "formula"), CASES.values(), ids=CASES.keys())
def test_normalisation_and_its_gradients(make: Callable, formula: Callable, offset: float):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 8, 9, 11)) * 2 + offset).astype(np.float32)
    u = rng.standard_normal(x.shape).astype(np.float32)
    weight, bias = rng.standard_normal((2, 8)).astype(np.float32)
    module = make()
    module.weight.assign(weight)
    module.bias.assign(bias)
    given = [jt.array(x), module.weight, module.bias]
    y = module(given[0])
    gradients = jt.grad((y * jt.array(u)).sum(), given)
    arrays = [a.astype(np.float64) for a in (x, weight, bias)]
    np.testing.assert_allclose(y.numpy(), formula(*arrays), atol=1e-5 if offset == 0 else 1e-3)
    for gradient, array in zip(gradients, arrays, strict=True):
        found = gradient.numpy().ravel()
        for place in rng.integers(0, array.size, 5):
            before = array.ravel()[place]
            sums = []
            for shift in (1e-6, -1e-6):
                array.ravel()[place] = before + shift
                sums.append((formula(*arrays) * u).sum())
            array.ravel()[place] = before
            expected = (sums[0] - sums[1]) / 2e-6
            assert abs(found[place] - expected) < 2e-4 * max(1, np.abs(found).max()) * (1 if offset == 0 else 10)


def test_groups_have_to_be_equal():
    with pytest.raises(ValueError, match=r"48 channels can't be split into 32 groups: use a multiple of 32"):
        GroupNorm(48)
