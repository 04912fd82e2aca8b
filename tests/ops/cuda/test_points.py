"""The choice and the flow of points on the GPU kernels."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.models.pointflow import PointFlow
from pfseg.ops import kernels, maps
from pfseg.ops.points import flow_points
from pfseg.ops.selection import top_points
from pfseg.runtime import jt

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


@pytest.mark.parametrize("emulated", ["fp32", "bf16"], indirect=True)
@pytest.mark.parametrize(("size", "count"), [((5, 7), 12), ((5, 7), 128), ((40, 41), 128)])
def test_top_points_take_the_first_of_equal_values(emulated, size, count):
    x = np.random.default_rng(0).standard_normal((3, 1, *size)).astype(np.float32)
    x[1] = np.round(x[1] * 2) / 2
    x[2] = np.where(x[2] < 2.5, -0.0, 0.0)
    expected = np.argsort(-x.reshape(3, -1), 1, kind="stable")[:, :count]
    got = top_points(jt.array(x), count).numpy()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.sort(expected))


@pytest.mark.parametrize("emulated", ["fp32", "bf16"], indirect=True)
def test_top_points_take_nan_last(emulated):
    x = np.array([[[[np.nan, -np.inf, 3.0, -np.nan, np.inf, -1.0]]], np.full((1, 1, 6), np.nan)], np.float32)
    assert top_points(jt.array(x), 4).numpy().tolist() == [[1, 2, 4, 5], [0, 1, 2, 3]]


@pytest.mark.parametrize("channels", [6, 16, 257])
@pytest.mark.parametrize(
    ("coarse_size", "fine_size", "counts"),
    [
        ((6, 5), (12, 10), (20, 25)),
        ((5, 7), (9, 14), (9, 40)),  # odd sizes
        ((4, 3), (13, 10), (12, 5)),  # targets that are not sampled
        ((6, 5), (3, 4), (17, 9)),  # several boundary points at one cell
        ((6, 5), (12, 10), (0, 25)),
        ((6, 5), (12, 10), (20, 0)),
        ((6, 5), (12, 10), (0, 0)),
    ],
)
def test_flow_as_on_a_cpu(emulated, channels, coarse_size, fine_size, counts):
    rng = np.random.default_rng(1)
    cells = coarse_size[0] * coarse_size[1]
    coarse, fine, upstream = (
        maps.to_first(maps.to_last(jt.array(rng.standard_normal((2, channels, *size)).astype(np.float32)))).numpy()
        for size in (coarse_size, fine_size, fine_size)
    )
    factor = rng.random((2, 1, *coarse_size)).astype(np.float32)
    boundary = np.stack([rng.permutation(cells)[: counts[0]] for _ in range(2)]).astype(np.int32)
    salient = rng.integers(0, cells, (2, counts[1])).astype(np.int32)  # with duplicates

    def run() -> list[np.ndarray]:
        a, b, weights = jt.array(coarse), jt.array(fine), jt.array(factor)
        points = jt.array(boundary) if counts[0] else None, (jt.array(salient), weights) if counts[1] else None
        if kernels.maps_last():
            with maps.channels_last():
                out = maps.to_first(flow_points(maps.to_last(a), maps.to_last(b), *points))
        else:
            out = flow_points(a, b, *points)
        return [v.numpy() for v in (out, *jt.grad((out * jt.array(upstream)).sum(), [a, b, weights]))]

    got = run()
    with plain_cpu():
        expected = run()
    for name, a, b in zip(("out", "coarse", "fine", "factor"), got, expected, strict=True):
        assert np.abs(a - b).max() <= TOLERANCE[emulated] * max(np.abs(b).max(), 1e-6), name


def test_module_and_its_gradients(emulated):
    stored = golden.load("pointflow")
    module = PointFlow(16, match_dim=8, num_edge_points=12, edge_pool=3, salient_pool=5, pooling="floor_ceil")
    golden.fill(module)
    coarse, fine = jt.array(stored["x_high"]), jt.array(stored["x_low"])
    out, edge = module(coarse, fine)
    gradients = jt.grad((out * out).sum() + (edge * edge).sum(), [coarse, fine])
    tolerance = {"fp32": 1e-4, "bf16": 5e-2}[emulated]
    for name, value in zip(("out", "edge", "grad_high", "grad_low"), (out, edge, *gradients), strict=True):
        assert golden.difference(value, stored[name]) < tolerance, name


def test_plane_of_maps_with_one_channel(emulated):
    x = jt.array(np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4))
    with maps.channels_last():
        y = maps.plane(maps.to_last(x))
        z = maps.plane(x.reshape(2, 3, 4, 1))  # as a convolution with float32 output gives it
    assert str(y.dtype) == "float32"
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    np.testing.assert_array_equal(z.numpy(), x.numpy())
    np.testing.assert_array_equal(jt.grad((y * x).sum(), x).numpy(), 2 * x.numpy())
