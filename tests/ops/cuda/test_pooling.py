"""Pooling at a stride on the GPU kernels, against Jittor's."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.ops import kernels, maps
from pfseg.ops.pooling import AvgPool2d, MaxPool2d
from pfseg.runtime import jt

TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3}


@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
@pytest.mark.parametrize("channels", [1, 5, 26, 64])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inside", [False, True])
def test_as_on_a_cpu(emulated, kind, channels, stride, inside):
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(s).astype(np.float32)
        for s in ((2, channels, 9, 8), (2, channels, *[-(-n // stride) for n in (9, 8)]))
    ]
    arrays = [maps.to_first(maps.to_last(jt.array(a))).numpy() for a in arrays]  # what both start from
    pool = kind(3, stride=stride, padding=1)

    def run() -> list[np.ndarray]:
        x, upstream = map(jt.array, arrays)
        if kernels.maps_last() and inside:
            with maps.channels_last():
                y = maps.to_first(pool(maps.to_last(x)))
        else:
            y = pool(x)
        return [y.numpy(), jt.grad((y * upstream).sum(), x).numpy()]

    got = run()
    with plain_cpu():
        expected = run()
    for a, b in zip(got, expected, strict=True):
        assert golden.difference(a, b) < TOLERANCE[emulated]


def test_the_first_of_equal_values_wins(emulated):
    x = jt.zeros((1, 1, 4, 4))
    gradient = jt.grad(MaxPool2d(3, stride=2, padding=1)(x).sum(), x).numpy()[0, 0]
    np.testing.assert_array_equal(gradient, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
