"""Convolutions on the GPU kernels, with plain loops in place of cuDNN and cuBLAS."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.ops import kernels, maps
from pfseg.ops.convolution import Conv2d, PackedWeights
from pfseg.runtime import jt

CASES = {
    "stem": dict(sizes=(3, 10), kernel=7, stride=2, padding=3),
    "3x3": dict(sizes=(16, 12), kernel=3, padding=1, bias=True),
    "3x3 with stride": dict(sizes=(26, 26), kernel=3, stride=2, padding=1),
    "dilated": dict(sizes=(8, 7), kernel=3, padding=2, dilation=2, bias=True),
    "pointwise": dict(sizes=(26, 16), kernel=1, bias=True),
    "pointwise with stride": dict(sizes=(16, 24), kernel=1, stride=2),
    "edges": dict(sizes=(12, 1), kernel=3, padding=1, bias=True, float_output=True),
    "classes": dict(sizes=(16, 6), kernel=1, bias=True, float_output=True),
    "more channels than a block turns around": dict(sizes=(1100, 3), kernel=3, padding=1),
}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


def representable(array: np.ndarray) -> np.ndarray:
    """The values that the maps' type has."""
    return maps.to_first(maps.to_last(jt.array(array))).numpy()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients_as_on_a_cpu(emulated, case, relu):
    case = {"bias": False, "float_output": False} | case
    sizes, kernel, float_output = (case.pop(key) for key in ("sizes", "kernel", "float_output"))
    rng = np.random.default_rng(0)
    module = Conv2d(*sizes, kernel, **case)
    module.weight.assign(jt.array(representable(module.weight.numpy())))
    module.relu, module.float_output = relu, float_output
    x = representable(rng.standard_normal((2, sizes[0], 9, 12)).astype(np.float32))
    u = None

    def run() -> list[np.ndarray]:
        nonlocal u
        var = jt.array(x)
        y = module(var)
        if u is None:
            u = representable(rng.standard_normal(y.shape).astype(np.float32))
        if relu:
            return [y.numpy()]
        return [v.numpy() for v in (y, *jt.grad((y * jt.array(u)).sum(), [var, *module.parameters()]))]

    got = run()
    with plain_cpu():
        expected = run()
    for name, a, b in zip(("y", "x", "w", "b"), got, expected, strict=False):
        assert golden.difference(a, b) < TOLERANCE[emulated], name


def test_type_of_the_result(emulated):
    module = Conv2d(8, 5, 3)
    x = jt.zeros((1, 8, 6, 6))
    with maps.channels_last():
        maps_x = maps.to_last(x)
        assert module(maps_x).dtype == kernels.dtype()
        module.float_output = True
        assert module(maps_x).dtype == "float32"
        assert module(maps_x).shape == [1, 4, 4, 5]


def test_channels_have_to_agree(emulated):
    with pytest.raises(ValueError, match=r"got 4 channels, but the convolution's weights are for 3"):
        Conv2d(3, 8, 3)(jt.zeros((1, 4, 8, 8)))


def test_weights_packed_together(emulated):
    rng = np.random.default_rng(0)
    module = jt.nn.Sequential(
        Conv2d(6, 9, 3), Conv2d(9, 10, 1), Conv2d(10, 12, 3, bias=False), Conv2d(12, 5, 1, stride=2)
    )
    module[3].float_output = True
    module[2].weight.stop_grad()
    x = jt.array(rng.standard_normal((2, 6, 9, 12)).astype(np.float32))
    weights = [var for var in module.parameters() if var is not module[2].weight]
    together = PackedWeights()

    def run(packed: bool) -> list[np.ndarray]:
        if packed:
            with together.of(module):
                y = module(x)
        else:
            y = module(x)
        return [var.numpy() for var in (y, *jt.grad((y * y).sum(), weights))]

    for a, b in zip(run(True), run(False), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("emulated", ["fp32", "bf16"], indirect=True)
def test_packed_weights_are_kept_until_one_changes(emulated):
    module = jt.nn.Sequential(Conv2d(6, 8, 3), Conv2d(8, 8, 3))
    x = jt.ones((1, 6, 9, 9))
    together = PackedWeights()

    def run() -> np.ndarray:
        with jt.no_grad(), together.of(module):
            return module(x).numpy()

    before, kept = run(), together._kept
    np.testing.assert_array_equal(run(), before)
    assert together._kept is kept
    module[1].weight.assign(module[1].weight * 2)
    np.testing.assert_array_equal(run(), module(x).numpy())
    assert together._kept is not kept
