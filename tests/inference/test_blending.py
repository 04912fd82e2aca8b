"""Overlapping windows against averages computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import sliding

from pfseg.data.tiling import Window
from pfseg.inference.blending import Blender, blend_weights
from pfseg.inference.sliding import WindowGrid


def test_two_windows_blended_by_hand():
    def one_class_a_window(batch: np.ndarray) -> np.ndarray:
        right = batch[:, :1].mean() > 0
        return np.concatenate([np.full_like(batch[:, :1], -50 if right else 50), np.zeros_like(batch[:, :1])], 1)

    picture = np.zeros((3, 4, 6), np.float32)
    picture[:, :, :2], picture[:, :, 4:] = -1, 1
    found = sliding(one_class_a_window, window=(4, 4), overlap=0.5).probabilities(picture)
    weights = np.sin(np.pi * (np.arange(4) + 0.5) / 4) ** 2
    share = weights[2:] / (weights[2:] + weights[:2])
    np.testing.assert_allclose(found[0], np.tile([1, 1, *share, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)


def blended(windows: list[Window], parts: list[np.ndarray | None], shape: tuple[int, int], half: bool) -> np.ndarray:
    """(K, H, W), NaN where no block lies."""
    blender, found = Blender(2, shape, windows, half=half), iter(parts)
    whole, end = np.full((2, *shape), np.nan, np.float32), 0
    for row in blender.rows:
        right = 0
        for block, mean in blender.add(row, found):
            assert (block.y0, block.y1, block.x0) == (max(row.top, end), row.bottom, right)
            whole[:, *block.slices], right = mean, block.x1
        assert right == shape[1]
        end = row.bottom
    assert next(found, None) is None
    return whole


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
def test_blocks_hold_the_weighted_mean_of_all_windows(overlap: float, half: bool):
    shape, rng = (90, 70), np.random.default_rng(0)
    windows = WindowGrid((32, 24), overlap, 1, 1).windows(shape)
    parts = [rng.random((2, 32, 24), np.float32) if rng.random() < 0.8 else None for _ in windows]
    sums, weights = np.zeros((2, *shape), np.float32), np.zeros(shape, np.float32)
    for window, part in zip(windows, parts, strict=True):
        if part is not None:
            sums[:, *window.slices] += part * blend_weights(32, 24)
            weights[window.slices] += blend_weights(32, 24)
    expected = sums / np.where(weights > 0, weights, 1)
    found = blended(windows, parts, shape, half)
    if half:
        np.testing.assert_allclose(found, expected, atol=1e-3)
    else:
        np.testing.assert_array_equal(found, expected)
    assert overlap or (found == 0).any(), "pixels that no window covers are 0"


def test_windows_may_leave_gaps():
    windows = [Window(1, 3, 0, 4), Window(1, 3, 5, 6), Window(4, 5, 2, 6)]
    parts: list[np.ndarray | None] = [np.full((2, 2, 4), 0.5, np.float32) for _ in windows]
    found = blended(windows, parts, (5, 6), False)
    assert np.isnan(found[:, [0, 3]]).all()
    np.testing.assert_array_equal(found[0, 1:3], [[0.5] * 4 + [0, 0.5]] * 2)
    np.testing.assert_array_equal(found[0, 4], [0, 0] + [0.5] * 4)


@pytest.mark.parametrize("side", [1, 2, 31, 896])
def test_weights_are_smooth_positive_and_symmetric(side: int):
    weights = blend_weights(side, 8)
    assert weights.shape == (side, 8)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-4)
    assert np.abs(np.diff(weights, axis=0)).max(initial=0) < 4 / side
