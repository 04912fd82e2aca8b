"""Resizing and adaptive pooling on the GPU kernels, against the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.ops import maps
from pfseg.ops import resampling as ops
from pfseg.runtime import Var, jt

TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3}
Operator = Callable[[Var], Var]


def rounded(array: np.ndarray) -> np.ndarray:
    """What an array is in the type of the maps."""
    return maps.to_first(maps.to_last(jt.array(array))).numpy()


def both(operator: Operator, x: np.ndarray, upstream: np.ndarray) -> list[np.ndarray]:
    """Result and gradient of an operator on (N, C, H, W)."""
    var = jt.array(x)
    y = operator(var)
    return [y.numpy(), jt.grad((y * jt.array(upstream)).sum(), var).numpy()]


def on_maps(operator: Operator) -> Operator:
    def run(x: Var) -> Var:
        with maps.channels_last():
            return maps.to_first(operator(maps.to_last(x)))

    return run


def compare(operator: Operator, gpu: Operator, x: np.ndarray, upstream: np.ndarray, tolerance: float) -> None:
    """`gpu` on the kernels gives what `operator` gives on a CPU."""
    got = both(gpu, x, upstream)
    with plain_cpu():
        expected = both(operator, x, upstream)
    for a, b in zip(got, expected, strict=True):
        assert golden.difference(a, b) < tolerance


def arrays(shape: tuple[int, ...], size: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in (shape, (*shape[:2], *size))]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("channels", [1, 5, 26, 64])
@pytest.mark.parametrize("size", [(5, 9), (13, 3), (1, 1), (28, 29), (7, 6)])
def test_resize(emulated, channels, size, align_corners):
    x, upstream = map(rounded, arrays((2, channels, 7, 4), size))

    def operator(v: Var) -> Var:
        return ops.resize(v, size, align_corners)

    compare(operator, on_maps(operator), x, upstream, TOLERANCE[emulated])


@pytest.mark.parametrize("size", [(14, 8), (13, 3), (1, 1), (8, 9)])
def test_resize_to_the_nearest(emulated, size):
    x, upstream = map(rounded, arrays((2, 5, 7, 4), size))

    def operator(v: Var) -> Var:
        return ops.resize_nearest(v, size)

    compare(operator, on_maps(operator), x, upstream, TOLERANCE[emulated])


@pytest.mark.parametrize("shape", [(2, 64, 1, 1), (1, 8, 2, 3), (2, 3, 1, 5)])
def test_resize_of_few_positions_to_many(emulated, shape):
    x, upstream = map(rounded, arrays(shape, (28, 31)))
    compare(
        lambda v: ops.resize(v, (28, 31)), on_maps(lambda v: ops.resize(v, (28, 31))), x, upstream, TOLERANCE[emulated]
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("channels", [1, 5, 26, 64])
@pytest.mark.parametrize("size", [(29, 27), (7, 6), (3, 13), (1, 1), (60, 300)])
def test_resize_to_images(emulated, channels, size, align_corners):
    x, upstream = arrays((2, channels, 7, 6), size)
    x = rounded(x)

    def gpu(v: Var) -> Var:
        with maps.channels_last():
            y = ops.resize_to_image(maps.to_last(v), size, align_corners)
        assert str(y.dtype) == "float32"
        return y

    compare(lambda v: ops.resize_to_image(v, size, align_corners), gpu, x, upstream, TOLERANCE[emulated])


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 3, 20, 130), (75, 519)), ((1, 2, 1, 1), (9, 400)), ((1, 64, 3, 90), (4, 270))]
)
def test_resize_to_images_of_several_tiles(emulated, shape, size):
    x, upstream = arrays(shape, size)
    x = rounded(x)

    def gpu(v: Var) -> Var:
        with maps.channels_last():
            return ops.resize_to_image(maps.to_last(v), size)

    compare(lambda v: ops.resize_to_image(v, size), gpu, x, upstream, TOLERANCE[emulated])


@pytest.mark.parametrize("rule", ["floor_ceil", "fixed_window"])
@pytest.mark.parametrize("channels", [1, 5, 26, 64])
@pytest.mark.parametrize("out", [1, 3, 6])
def test_average_pooling(emulated, rule, channels, out):
    x, upstream = map(rounded, arrays((2, channels, 13, 8), (out, out)))

    def pool(v: Var) -> Var:
        return ops.adaptive_avg_pool(v, out, rule)

    compare(pool, on_maps(pool), x, upstream, TOLERANCE[emulated])


def test_average_pooling_to_more_cells_than_positions(emulated):
    x, upstream = map(rounded, arrays((2, 8, 3, 2), (5, 5)))

    def pool(v: Var) -> Var:
        return ops.adaptive_avg_pool(v, 5, "floor_ceil")

    compare(pool, on_maps(pool), x, upstream, TOLERANCE[emulated])


def test_fixed_windows_need_as_many_positions_as_cells(emulated):
    for pool in (ops.plane_avg_pool, ops.adaptive_max_pool):
        with pytest.raises(ValueError, match="a side of 4 cells can't be pooled to 5"):
            pool(jt.zeros((1, 1, 7, 4)), 5, "fixed_window")


@pytest.mark.parametrize("rule", ["floor_ceil", "fixed_window"])
def test_planes_keep_their_layout_and_type(emulated, rule):
    def chain(v: Var) -> Var:
        with maps.channels_last():
            return ops.plane_resize(ops.plane_avg_pool(v, 9, rule), (31, 33))

    x, upstream = arrays((2, 1, 31, 33), (31, 33))
    compare(chain, chain, x, upstream, TOLERANCE["fp32"])


def test_outside_of_the_network_arrays_are_those_of_a_cpu(emulated):
    def chain(v: Var) -> Var:
        return ops.resize_to_image(ops.resize(ops.adaptive_avg_pool(v, 3, "floor_ceil"), (5, 8)), (9, 9))

    x, upstream = arrays((2, 6, 7, 8), (9, 9))
    compare(chain, chain, x, upstream, TOLERANCE["fp32"])


@pytest.mark.parametrize("rule", ["floor_ceil", "fixed_window"])
@pytest.mark.parametrize("out", [1, 4, 7])
def test_max_pooling(emulated, rule, out):
    x, upstream = arrays((3, 1, 18, 15), (out, out))
    x = np.round(x)  # many equal values

    def pool(v: Var) -> Var:
        values, flat = ops.adaptive_max_pool(v, out, rule)
        positions.append(flat.numpy())
        return values

    positions: list[np.ndarray] = []
    compare(pool, pool, x, upstream, TOLERANCE["fp32"])
    got, expected = positions
    assert got.dtype == expected.dtype == np.int32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("emulated", ["fp32", "bf16"], indirect=True)
def test_max_pooling_of_nan_gives_positions_of_the_map(emulated):
    x = np.full((1, 1, 4, 4), np.nan, np.float32)
    x[0, 0, 3, 2] = -1
    values, flat = ops.adaptive_max_pool(jt.array(x), 2, "floor_ceil")
    assert flat.numpy().tolist() == [[0, 2, 8, 14]]
    assert values.numpy().ravel()[3] == -1
