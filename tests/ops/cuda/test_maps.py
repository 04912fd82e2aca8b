"""Maps in channels-last layout."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.ops import kernels, maps
from pfseg.runtime import jt

TOLERANCE = {"fp32": 1e-6, "bf16": 1e-2}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 9, shape).astype(np.float32)  # exact in 16 bits


@pytest.mark.parametrize("shape", [(2, 3, 33, 70), (1, 26, 5, 4), (2, 64, 1, 1)])
def test_layouts_and_back(emulated, shape):
    x = jt.array(random(*shape))
    last = maps.to_last(x)
    assert str(last.dtype) == kernels.dtype()
    assert (last.float32().numpy() == x.numpy().transpose(0, 2, 3, 1)).all()
    assert (maps.to_first(last).numpy() == x.numpy()).all()
    (gradient,) = jt.grad((maps.to_first(last) * x).sum(), [x])
    assert (gradient.numpy() == 2 * x.numpy()).all()


@pytest.mark.parametrize("widths", [(8, 16), (26, 26, 26, 26), (3, 1, 4)])
def test_concat_and_its_gradient(emulated, widths):
    parts = [jt.array(random(2, width, 5, 3) + i) for i, width in enumerate(widths)]
    weights = random(2, sum(widths), 5, 3)
    with maps.channels_last():
        joined = maps.to_first(maps.concat([maps.to_last(part) for part in parts]))
    assert (joined.numpy() == np.concatenate([part.numpy() for part in parts], 1)).all()
    gradients = jt.grad((joined * jt.array(weights)).sum(), parts)
    expected = np.split(weights, np.cumsum(widths)[:-1], 1)
    assert all((a.numpy() == b).all() for a, b in zip(gradients, expected, strict=True))


def test_split_and_its_gradient(emulated):
    x, weights = jt.array(random(2, 104, 3, 5)), random(2, 26, 3, 5)
    with maps.channels_last():
        parts = [maps.to_first(part) for part in maps.split(maps.to_last(x), 26)]
    assert all((part.numpy() == x.numpy()[:, 26 * i :][:, :26]).all() for i, part in enumerate(parts))
    (gradient,) = jt.grad((parts[1] * jt.array(weights)).sum() + parts[3].sum(), [x])
    expected = np.zeros(x.shape)
    expected[:, 26:52], expected[:, 78:] = weights, 1
    assert (gradient.numpy() == expected).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("channels", [5, 64])
def test_modulate(emulated, sign, channels):
    x, upstream = jt.array(random(2, channels, 7, 3)), jt.array(random(2, channels, 7, 3)[::-1].copy())
    factor = jt.array(np.random.default_rng(1).random((2, 1, 7, 3), np.float32))
    with maps.channels_last():
        y = maps.to_first(maps.modulate(maps.to_last(x), factor, sign))
    gradients = jt.grad((y * upstream).sum(), [x, factor])
    scale = 1 + sign * factor.numpy()
    assert np.abs(y.numpy() - x.numpy() * scale).max() < 16 * TOLERANCE[emulated]
    assert np.abs(gradients[0].numpy() - upstream.numpy() * scale).max() < 16 * TOLERANCE[emulated]
    expected = sign * (upstream.numpy() * x.numpy()).sum(1, keepdims=True)
    assert np.abs(gradients[1].numpy() - expected).max() < 64 * TOLERANCE[emulated]


def test_channels_are_scaled_and_sums_are_cut_at_0(emulated):
    x, factors = jt.array(random(2, 24, 3, 3)), jt.array(random(2, 24))
    with maps.channels_last():
        y = maps.to_first(maps.scale_channels(maps.to_last(x), factors))
        z = maps.to_first(maps.add_relu(maps.to_last(x), maps.to_last(x)))
    assert (y.numpy() == x.numpy() * factors.numpy()[..., None, None]).all()
    assert (z.numpy() == np.maximum(2 * x.numpy(), 0)).all()
    (gradient,) = jt.grad(y.sum(), [x])
    assert (gradient.numpy() == factors.numpy()[..., None, None] * np.ones((2, 24, 3, 3))).all()


def test_sums_and_two_users_of_a_map(emulated):
    x, y, *upstream = np.random.default_rng(0).integers(-128, 129, (4, 2, 5, 4, 3)).astype(np.float32) + 0.5
    x, y, *upstream = (maps.to_first(maps.to_last(jt.array(v))).numpy() for v in (x, y, *upstream))
    a, b = jt.array(x), jt.array(y)
    with maps.channels_last():
        first, second = maps.fork(maps.to_last(a))
        total = maps.to_first(maps.add(first, maps.relu(maps.to_last(b))))
        second = maps.to_first(second)
    loss = (total * jt.array(upstream[0])).sum() + (second * jt.array(upstream[1])).sum()
    got = [v.numpy() for v in (total, *jt.grad(loss, [a, b]))]
    expected = [x + np.maximum(y, 0), upstream[0] + upstream[1], upstream[0] * (y > 0)]
    for value, exact in zip(got, expected, strict=True):
        assert np.abs(value - exact).max() <= TOLERANCE[emulated] / 2 * np.abs(exact).max()
        assert abs((value - exact).mean()) <= TOLERANCE[emulated] * 5  # rounded, not cut off
