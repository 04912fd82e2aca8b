"""GELU and scaled shortcuts against the plain formulas and finite differences."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

from pfseg.ops.elementwise import gelu, scaled_add
from pfseg.runtime import jt


def exact(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def test_gelu_and_its_gradient():
    x = np.concatenate([np.linspace(-9, 9, 1801), [-100.0, 100.0, 0.0]]).astype(np.float32)
    var = jt.array(x)
    y = gelu(var)
    (gradient,) = jt.grad(y.sum(), [var])
    wide = x.astype(np.float64)
    assert (np.abs(y.numpy() - exact(wide)) <= 3e-7 * np.maximum(1, np.abs(wide))).all()
    step = 1e-5
    np.testing.assert_allclose(gradient.numpy(), (exact(wide + step) - exact(wide - step)) / (2 * step), atol=2e-6)


def test_scaled_add_and_its_gradients():
    rng = np.random.default_rng(0)
    x, y, u = (rng.standard_normal((2, 3, 5, 7)).astype(np.float32) for _ in range(3))
    scale = rng.standard_normal((2, 3)).astype(np.float32)
    variables = [jt.array(a) for a in (x, y, scale)]
    out = scaled_add(*variables)
    gradients = jt.grad((out * jt.array(u)).sum(), variables)
    wide = scale[:, :, None, None]
    for got, expected in zip((out, *gradients), (x + wide * y, u, wide * u, (u * y).sum((2, 3))), strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
