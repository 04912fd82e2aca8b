"""Small exact cases of resizing and pooling."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.ops import resampling as ops
from pfseg.runtime import jt


def test_windows_of_both_pooling_rules():
    assert ops.pooling_windows(7, 3, "floor_ceil") == [(0, 3), (2, 5), (4, 7)]
    assert ops.pooling_windows(7, 3, "fixed_window") == [(0, 3), (2, 5), (4, 7)]
    assert ops.pooling_windows(8, 3, "floor_ceil") == [(0, 3), (2, 6), (5, 8)]
    assert ops.pooling_windows(8, 3, "fixed_window") == [(0, 4), (2, 6), (4, 8)]
    assert ops.pooling_windows(2, 4, "floor_ceil") == [(0, 1), (0, 1), (1, 2), (1, 2)]


def test_fixed_windows_need_as_many_positions_as_cells():
    with pytest.raises(ValueError, match=r"a side of 8 cells can't be pooled to 14: variant 'jittor' needs .* 448 px"):
        ops.pooling_windows(8, 14, "fixed_window")


def test_resize_aligns_corners():
    x = jt.array(np.array([[[[0.0, 2.0], [4.0, 6.0]]]], np.float32))
    expected = [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    np.testing.assert_allclose(ops.resize(x, (3, 3)).numpy()[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(ops.resize(x, (1, 1)).numpy()[0, 0], [[0]], atol=1e-6)


def test_resize_keeps_the_edges():
    x = jt.array(np.array([[[[0.0, 2.0], [4.0, 6.0]]]], np.float32))
    wide = ops.resize(x, (2, 4), align_corners=False).numpy()[0, 0]
    np.testing.assert_allclose(wide, [[0, 0.5, 1.5, 2], [4, 4.5, 5.5, 6]], atol=1e-6)
    np.testing.assert_allclose(ops.resize(x, (1, 1), align_corners=False).numpy()[0, 0], [[3]], atol=1e-6)


def test_resize_to_the_nearest():
    x = jt.array(np.arange(3, dtype=np.float32).reshape(1, 1, 1, 3))
    assert ops.resize_nearest(x, (2, 6)).numpy()[0, 0].tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert ops.resize_nearest(x, (1, 5)).numpy()[0, 0].tolist() == [[0, 0, 1, 1, 2]]
    gradient = jt.grad(ops.resize_nearest(x, (1, 5)).sum(), x).numpy()
    assert gradient.ravel().tolist() == [2, 2, 1]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(5, 9), (13, 3), (1, 1), (7, 4)])
def test_resize_gradient_is_the_transpose(size, align_corners):
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((2, 3, 7, 4)), rng.standard_normal((2, 3, *size))
    var = jt.array(x.astype(np.float32))
    y = ops.resize(var, size, align_corners)
    gradient = jt.grad((y * jt.array(u.astype(np.float32))).sum(), var).numpy()
    np.testing.assert_allclose((y.numpy() * u).sum(), (gradient * x).sum(), rtol=1e-4)
    rows, columns = (ops._resize_matrix(*sides, align_corners) for sides in ((7, size[0]), (4, size[1])))
    np.testing.assert_allclose(y.numpy(), np.einsum("ia,jb,ncab->ncij", rows, columns, x), atol=1e-5)


def test_average_pooling_of_overlapping_windows():
    x = jt.array(np.arange(5, dtype=np.float32).reshape(1, 1, 1, 5).repeat(5, 2))
    pooled = ops.adaptive_avg_pool(x, 3, "floor_ceil").numpy()[0, 0]
    np.testing.assert_allclose(pooled, [[0.5, 2.0, 3.5]] * 3, atol=1e-6)


def test_max_pooling_takes_the_first_of_equal_values():
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 1] = x[0, 0, 2, 2] = 1
    values, indices = ops.adaptive_max_pool(jt.array(x), 2, "floor_ceil")
    assert values.numpy().ravel().tolist() == [1, 0, 0, 1]
    assert indices.numpy().tolist() == [[5, 2, 8, 10]]
