"""Parts of MSCAN, ConvNeXt and LightHam that stored outputs don't reach."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.models.convnext import ConvNeXt
from pfseg.models.lightham import Factorisation
from pfseg.models.mscan import MSCAN, drop_path_rates
from pfseg.ops.convolution import Linear
from pfseg.ops.layers import ScaledShortcut
from pfseg.runtime import jt


def test_unknown_sizes():
    with pytest.raises(ValueError, match=r"MSCAN of size 'l' is unknown; use one of \['b', 's', 't'\] \(config: model"):
        MSCAN("l", 0.1)
    with pytest.raises(ValueError, match=r"ConvNeXt of size 'b' is unknown; use one of \['s', 't'\] \(config: model"):
        ConvNeXt("b", 0.1)


def test_drop_path_rates_lie_on_a_line():
    rates = drop_path_rates(0.4, (2, 3))
    assert [len(stage) for stage in rates] == [2, 3]
    np.testing.assert_allclose([rate for stage in rates for rate in stage], [0.0, 0.1, 0.2, 0.3, 0.4])


def test_shortcut_leaves_branches_out_per_sample():
    layer = ScaledShortcut(0.5)
    layer.train()
    x, y, scale = jt.ones((64, 2, 1, 1)), jt.ones((64, 2, 1, 1)), jt.array(np.array([1.0, 3.0], np.float32))
    out = layer(x, y, scale).numpy()[:, :, 0, 0]
    kept = out[:, 0] != 1
    assert 16 < kept.sum() < 48
    np.testing.assert_array_equal(out[kept], np.broadcast_to([3.0, 7.0], (kept.sum(), 2)))
    np.testing.assert_array_equal(out[~kept], 1)
    layer.eval()
    np.testing.assert_array_equal(layer(x, y, scale).numpy()[:, :, 0, 0], np.broadcast_to([2.0, 4.0], (64, 2)))


def test_linear_layers_weights_are_matrices():
    layer = Linear(3, 5)
    assert tuple(layer.weight.shape) == (5, 3)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    expected = np.einsum("kc,nchw->nkhw", layer.weight.numpy(), x) + layer.bias.numpy()[:, None, None]
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, atol=1e-5)


def factorised(y: np.ndarray, bases: np.ndarray, steps: int) -> np.ndarray:
    """The published steps in float64; y (H, n), bases (H, R)."""
    logits = y.T @ bases
    a = np.exp(logits - logits.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    for step in range(steps + 1):
        a = a * (y.T @ bases) / (a @ (bases.T @ bases) + 1e-6)
        if step < steps:
            bases = bases * (y @ a) / (bases @ (a.T @ a) + 1e-6)
    return bases @ a.T


def test_factorisation():
    """Six steps in training from bases that are drawn anew, seven in evaluation from the same; gradients flow."""
    ham = Factorisation(6, 3)
    y = np.abs(np.random.default_rng(0).standard_normal((2, 6, 20))).astype(np.float32)
    ham.eval()
    first, second = (ham(jt.array(y)).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for n in range(2):
        np.testing.assert_allclose(first[n], factorised(y[n].astype(np.float64), ham.bases(1)[0], 7), atol=1e-5)
    ham.train()
    drawn = []
    for _ in range(2):
        ham.generator = np.random.default_rng(5)
        drawn.append(ham.bases(2))
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_allclose(np.linalg.norm(drawn[0], axis=1), 1, atol=1e-6)
    assert (drawn[0][0] != drawn[0][1]).any() and (ham.bases(2) != drawn[0]).any()
    ham.generator = np.random.default_rng(5)
    var = jt.array(y)
    out = ham(var)
    wide = y.astype(np.float64)
    expected = np.stack([factorised(wide[n], drawn[0][n], 6) for n in range(2)])
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    (gradient,) = jt.grad((out * out).sum(), [var])
    for place in [(0, 1, 2), (1, 5, 19), (0, 0, 0)]:
        sums = []
        for shift in (1e-6, -1e-6):
            moved = wide.copy()
            moved[place] += shift
            sums.append(sum((factorised(moved[n], drawn[0][n], 6) ** 2).sum() for n in range(2)))
        np.testing.assert_allclose(gradient.numpy()[place], (sums[0] - sums[1]) / 2e-6, rtol=1e-3, atol=1e-3)
