"""Convolutions and matrix products against sums written out in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from pfseg.ops.convolution import Conv2d, batched_matmul
from pfseg.runtime import jt

CASES = {
    "stem": dict(sizes=(3, 64), kernel=3, stride=2, padding=1, side=(33, 40)),
    "winograd": dict(sizes=(64, 32), kernel=3, padding=1, side=(40, 36), bias=True),
    "winograd of odd sizes": dict(sizes=(20, 17), kernel=3, padding=1, side=(33, 31)),
    "few tiles": dict(sizes=(32, 16), kernel=3, padding=1, side=(6, 5)),
    "one channel": dict(sizes=(16, 1), kernel=3, padding=1, side=(30, 20), bias=True),
    "dilated": dict(sizes=(64, 32), kernel=3, padding=2, dilation=2, side=(20, 24), bias=True),
    "pointwise": dict(sizes=(32, 64), kernel=1, side=(17, 9)),
    "pointwise with bias, in slices": dict(sizes=(4, 5), kernel=1, side=(60, 50), bias=True),
    "pointwise with stride": dict(sizes=(32, 64), kernel=1, stride=2, side=(17, 9)),
    "7x7": dict(sizes=(3, 8), kernel=7, stride=2, padding=3, side=(30, 20)),
}


def reference(x, w, u, stride, padding, dilation):
    """The convolution and both gradients for the upstream `u`, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y, x_grad, w_grad = np.zeros(u.shape), np.zeros_like(padded), np.zeros(w.shape)
    for i, j in np.ndindex(w.shape[2:]):
        rows = slice(i * dilation, i * dilation + stride * u.shape[2], stride)
        columns = slice(j * dilation, j * dilation + stride * u.shape[3], stride)
        part, tap = padded[:, :, rows, columns], w[:, :, i, j].astype(np.float64)
        y += np.einsum("kc,nchw->nkhw", tap, part)
        x_grad[:, :, rows, columns] += np.einsum("kc,nkhw->nchw", tap, u)
        w_grad[:, :, i, j] = np.einsum("nkhw,nchw->kc", u, part)
    inside = [slice(padding, -padding or None)] * 2
    return y, x_grad[:, :, *inside], w_grad


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolution_and_its_gradients(case):
    case = {"stride": 1, "padding": 0, "dilation": 1, "bias": False} | case
    sizes, kernel, side, bias = (case.pop(key) for key in ("sizes", "kernel", "side", "bias"))
    rng = np.random.default_rng(0)
    module = Conv2d(*sizes, kernel, bias=bias, **case)
    x = rng.standard_normal((3, sizes[0], *side)).astype(np.float32)
    var = jt.array(x)
    y = module(var)
    u = rng.standard_normal(y.shape).astype(np.float32)
    parameters = [var, *module.parameters()]
    gradients = dict(zip(("x", "w", "b"), jt.grad((y * jt.array(u)).sum(), parameters), strict=False))
    expected = dict(zip(("y", "x", "w"), reference(x, module.weight.numpy(), u, **case), strict=True))
    if bias:
        expected["y"] = expected["y"] + module.bias.numpy()[:, None, None]
        expected["b"] = u.sum((0, 2, 3), dtype=np.float64)
    for name, value in expected.items():
        got = (y if name == "y" else gradients[name]).numpy()
        np.testing.assert_allclose(got, value, atol=1e-5 * np.abs(value).max(), rtol=0, err_msg=name)
    module.relu = True
    with jt.no_grad():
        np.testing.assert_allclose(module(var).numpy(), np.maximum(y.numpy(), 0), atol=1e-6)


def test_processors_without_avx512():
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "gradients"]
    done = subprocess.run(command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(CASES) + 1} passed" in done.stdout


def test_channels_have_to_agree():
    with pytest.raises(ValueError, match=r"got 4 channels, but the convolution's weights are for 3"):
        Conv2d(3, 8, 3)(jt.zeros((1, 4, 8, 8)))


def test_batched_matmul_and_its_gradients():
    rng = np.random.default_rng(0)
    a, b, u = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 10, 20), (3, 20, 7), (3, 10, 7)))
    x, y = jt.array(a), jt.array(b)
    product = batched_matmul(x, y)
    x_grad, y_grad = jt.grad((product * jt.array(u)).sum(), [x, y])
    np.testing.assert_allclose(product.numpy(), a @ b, atol=1e-5)
    np.testing.assert_allclose(x_grad.numpy(), u @ b.transpose(0, 2, 1), atol=1e-5)
    np.testing.assert_allclose(y_grad.numpy(), a.transpose(0, 2, 1) @ u, atol=1e-5)
