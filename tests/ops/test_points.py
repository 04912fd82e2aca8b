"""Small exact cases of reading and writing at points."""

from __future__ import annotations

import numpy as np

from pfseg.ops.points import sample_points, scatter_points
from pfseg.runtime import jt


def test_scatter_lets_the_last_duplicate_win_and_gives_every_duplicate_the_gradient():
    base = jt.array(np.zeros((1, 1, 4), np.float32))
    source = jt.array(np.array([[[1.0, 2.0, 3.0]]], np.float32))
    out = scatter_points(base, source, jt.array(np.array([[2, 0, 2]], np.int32)))
    assert out.numpy().ravel().tolist() == [2, 0, 3, 0]
    weights = jt.array(np.array([[[10.0, 20.0, 30.0, 40.0]]], np.float32))
    to_base, to_source = jt.grad((out * weights).sum(), [base, source])
    assert to_base.numpy().ravel().tolist() == [0, 20, 0, 40]
    assert to_source.numpy().ravel().tolist() == [30, 10, 30]


def test_sampling_at_cell_centres_is_the_mean_of_two_by_two():
    fine = jt.array(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
    points = jt.array(np.array([[0, 3]], np.int32))
    assert sample_points(fine, (2, 2), points).numpy().ravel().tolist() == [2.5, 12.5]


def test_sampling_with_sizes_that_do_not_divide():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 1, 5, 7)).astype(np.float32)
    points = np.arange(6, dtype=np.int32)[None]
    got = sample_points(jt.array(x), (2, 3), jt.array(points)).numpy().ravel()
    padded = np.pad(x[0, 0], 1)
    for point, value in zip(points[0], got, strict=True):
        y, x_ = (point // 3 + 0.5) * 5 / 2 - 0.5, (point % 3 + 0.5) * 7 / 3 - 0.5
        top, left = int(np.floor(y)), int(np.floor(x_))
        block = padded[top + 1 : top + 3, left + 1 : left + 3]
        expected = np.array([1 - (y - top), y - top]) @ block @ np.array([1 - (x_ - left), x_ - left])
        np.testing.assert_allclose(value, expected, rtol=1e-5)
