"""Small exact cases of selecting values."""

from __future__ import annotations

import numpy as np

from pfseg.ops.selection import kth_smallest, top_points
from pfseg.runtime import jt


def test_top_points_are_capped_at_the_map():
    x = jt.array(np.array([[[[3.0, 9.0], [5.0, 1.0]]]], np.float32))
    assert top_points(x, 2).numpy().tolist() == [[1, 2]]
    assert sorted(top_points(x, 128).numpy()[0].tolist()) == [0, 1, 2, 3]


def test_kth_smallest():
    values = np.random.default_rng(0).permutation(100).astype(np.float32)
    var = jt.array(values)
    assert [float(kth_smallest(var, k)) for k in (1, 37, 100)] == [0, 36, 99]
    np.testing.assert_array_equal(var.numpy(), values)
