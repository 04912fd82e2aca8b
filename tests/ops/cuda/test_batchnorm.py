"""Batch normalisation on the GPU kernels."""

from __future__ import annotations

import golden
import numpy as np
import pytest

from pfseg.ops import kernels, maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.runtime import jt

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def deviation(got, expected: np.ndarray) -> float:
    """Root of the mean square of the differences, relative to that of the expected values."""
    return float(np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("emulated", ["fp32"], indirect=True)  # its values lie too far from zero for 16 bits
def test_training_mode(emulated):
    stored = golden.load("batchnorm_train")
    norm = golden.fill(BatchNorm2d(6))
    norm.train()
    x = jt.array(stored["x"])
    y = norm(x)
    gradients = jt.grad((y * jt.array(stored["upstream"])).sum(), [x, norm.weight, norm.bias])
    assert deviation(y, stored["out"]) < TOLERANCE[emulated]
    for name, gradient in zip(("grad_x", "grad_weight", "grad_bias"), gradients, strict=True):
        assert deviation(gradient, stored[name]) < TOLERANCE[emulated], name
    assert deviation(norm.running_mean, stored["running_mean"]) < TOLERANCE[emulated]
    assert deviation(norm.running_var, stored["running_var"]) < TOLERANCE[emulated]


@pytest.mark.parametrize("channels", [5, 26, 64])
@pytest.mark.parametrize("frozen", [False, True])
def test_residual_and_relu_as_on_a_cpu(emulated, channels, frozen):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, channels, 9, 7)).astype(np.float32) + 3 for _ in range(3)]
    if emulated == "bf16":  # what both start from
        arrays = [maps.to_first(maps.to_last(jt.array(a))).numpy() for a in arrays]
    norm = golden.fill(BatchNormReLU(channels))
    norm.train()
    if frozen:
        norm.freeze()

    def run() -> list[np.ndarray]:
        x, shortcut, upstream = map(jt.array, arrays)
        if kernels.active():
            with maps.channels_last():
                y = maps.to_first(norm.add_relu(maps.to_last(x), maps.to_last(shortcut - 3)))
        else:
            norm.relu = False
            y = norm.add_relu(x, shortcut - 3)
            norm.relu = True
        plain = norm(x)
        loss = (y * upstream).sum() + (plain * upstream).sum()
        return [v.numpy() for v in (y, plain, *jt.grad(loss, [x, shortcut, norm.weight, norm.bias]))]

    got = run()
    library = kernels._state["emulated"]
    kernels.emulate(None)
    expected = run()
    kernels.emulate(library)
    for a, b in zip(got, expected, strict=True):
        assert deviation(a, b) < TOLERANCE[emulated]
