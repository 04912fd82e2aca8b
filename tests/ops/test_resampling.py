"""Small exact cases of the operators."""

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


@pytest.mark.parametrize("size", [(5, 9), (13, 3), (1, 1), (7, 4)])
def test_resize_gradient_is_the_transpose(size):
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((2, 3, 7, 4)), rng.standard_normal((2, 3, *size))
    var = jt.array(x.astype(np.float32))
    y = ops.resize(var, size)
    gradient = jt.grad((y * jt.array(u.astype(np.float32))).sum(), var).numpy()
    np.testing.assert_allclose((y.numpy() * u).sum(), (gradient * x).sum(), rtol=1e-4)
    rows, columns = ops._resize_matrix(7, size[0]), ops._resize_matrix(4, size[1])
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


def test_scatter_lets_the_last_duplicate_win_and_gives_every_duplicate_the_gradient():
    base = jt.array(np.zeros((1, 1, 4), np.float32))
    source = jt.array(np.array([[[1.0, 2.0, 3.0]]], np.float32))
    out = ops.scatter_points(base, source, jt.array(np.array([[2, 0, 2]], np.int32)))
    assert out.numpy().ravel().tolist() == [2, 0, 3, 0]
    weights = jt.array(np.array([[[10.0, 20.0, 30.0, 40.0]]], np.float32))
    to_base, to_source = jt.grad((out * weights).sum(), [base, source])
    assert to_base.numpy().ravel().tolist() == [0, 20, 0, 40]
    assert to_source.numpy().ravel().tolist() == [30, 10, 30]


def test_sampling_at_cell_centres_is_the_mean_of_two_by_two():
    fine = jt.array(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
    points = jt.array(np.array([[0, 3]], np.int32))
    assert ops.sample_points(fine, (2, 2), points).numpy().ravel().tolist() == [2.5, 12.5]


def test_sampling_with_sizes_that_do_not_divide():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 1, 5, 7)).astype(np.float32)
    points = np.arange(6, dtype=np.int32)[None]
    got = ops.sample_points(jt.array(x), (2, 3), jt.array(points)).numpy().ravel()
    padded = np.pad(x[0, 0], 1)
    for point, value in zip(points[0], got, strict=True):
        y, x_ = (point // 3 + 0.5) * 5 / 2 - 0.5, (point % 3 + 0.5) * 7 / 3 - 0.5
        top, left = int(np.floor(y)), int(np.floor(x_))
        block = padded[top + 1 : top + 3, left + 1 : left + 3]
        expected = np.array([1 - (y - top), y - top]) @ block @ np.array([1 - (x_ - left), x_ - left])
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_top_points_are_capped_at_the_map():
    x = jt.array(np.array([[[[3.0, 9.0], [5.0, 1.0]]]], np.float32))
    assert ops.top_points(x, 2).numpy().tolist() == [[1, 2]]
    assert sorted(ops.top_points(x, 128).numpy()[0].tolist()) == [0, 1, 2, 3]


def test_channel_dropout_repeats_with_its_generator():
    dropout = ops.ChannelDropout(0.5)
    dropout.train()
    x = jt.ones((2, 64, 3, 3))
    dropout.generator = np.random.default_rng(7)
    first = dropout(x).numpy()
    dropout.generator = np.random.default_rng(7)
    assert (dropout(x).numpy() == first).all()
    assert set(np.unique(first)) == {0.0, 2.0}
    assert (first == first[..., :1, :1]).all()
    dropout.eval()
    assert (dropout(x).numpy() == 1).all()
