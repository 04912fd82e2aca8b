"""Depthwise convolutions against sums written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.ops.depthwise import DepthwiseConv2d
from pfseg.runtime import jt

CASES = {
    "3x3": ((3, 3), 1, (9, 17)),
    "5x5 of few rows": ((5, 5), 1, (3, 20)),
    "7x7": ((7, 7), 1, (19, 33)),
    "7x7, larger than the map": ((7, 7), 1, (2, 3)),
    "1x7": ((1, 7), 1, (10, 16)),
    "7x1": ((7, 1), 1, (8, 5)),
    "1x11": ((1, 11), 1, (4, 31)),
    "11x1": ((11, 1), 1, (16, 16)),
    "1x21": ((1, 21), 1, (9, 12)),
    "21x1": ((21, 1), 1, (12, 18)),
    "dilated": ((3, 3), 12, (15, 20)),
    "of no size that has code of its own": ((5, 3), 2, (11, 13)),
}


def reference(x, w, u, dilation):
    """The convolution and both gradients for the upstream `u`, in float64."""
    top, left = (dilation * (side // 2) for side in w.shape[2:])
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, top), (left, left)))
    y, x_grad, w_grad = np.zeros(x.shape), np.zeros_like(padded), np.zeros(w.shape)
    for i, j in np.ndindex(w.shape[2:]):
        rows = slice(i * dilation, i * dilation + x.shape[2])
        columns = slice(j * dilation, j * dilation + x.shape[3])
        tap = w[:, 0, i, j, None, None].astype(np.float64)
        y += tap * padded[:, :, rows, columns]
        x_grad[:, :, rows, columns] += tap * u
        w_grad[:, 0, i, j] = (u * padded[:, :, rows, columns]).sum((0, 2, 3))
    return y, x_grad[:, :, top : top + x.shape[2], left : left + x.shape[3]], w_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolution_and_its_gradients(case, bias):
    kernel, dilation, sides = case
    rng = np.random.default_rng(0)
    module = DepthwiseConv2d(3, kernel, dilation=dilation, bias=bias)
    x, u = (rng.standard_normal((2, 3, *sides)).astype(np.float32) for _ in range(2))
    var = jt.array(x)
    y = module(var)
    gradients = jt.grad((y * jt.array(u)).sum(), [var, *module.parameters()])
    got = dict(zip(("y", "x", "w", "b"), (y, *gradients), strict=False))
    expected = dict(zip(("y", "x", "w"), reference(x, module.weight.numpy(), u, dilation), strict=True))
    if bias:
        expected["y"] += module.bias.numpy()[:, None, None]
        expected["b"] = u.sum((0, 2, 3), dtype=np.float64)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].numpy(), value, atol=1e-5 * np.abs(value).max(), rtol=0, err_msg=name)


def test_kernels_need_a_middle():
    with pytest.raises(ValueError, match=r"a depthwise kernel of 3x4 has no middle: give odd sides"):
        DepthwiseConv2d(8, (3, 4))


def test_channels_have_to_agree():
    with pytest.raises(ValueError, match=r"got 4 channels, but the convolution's weights are for 3"):
        DepthwiseConv2d(3, 3)(jt.zeros((1, 4, 8, 8)))
