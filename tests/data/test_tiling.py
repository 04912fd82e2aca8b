from __future__ import annotations

import numpy as np
import pytest

from pfseg.data.tiling import Window, windows
from pfseg.errors import ConfigError

SETTINGS = [(896, 512), (800, 600), (768, 512), (512, 512)]


def starts_by_hand(length: int, size: int, stride: int) -> list[int]:
    """The published protocol in words: step by `stride`; a window that would stick out is moved back inside."""
    found = []
    for start in range(0, length, stride):
        found.append(max(0, min(start, length - size)))
        if start + size >= length:
            break
    return found


def lengths() -> list[int]:
    rng = np.random.default_rng(0)
    edges = [
        side
        for size, stride in SETTINGS
        for k in (0, 1, 9)
        for side in range(size + k * stride - 1, size + k * stride + 2)
    ]
    return sorted({1, 100, 700, 800, 13000, *edges, *rng.integers(800, 13001, 300).tolist()})


@pytest.mark.parametrize(("size", "stride"), SETTINGS)
def test_windows_cover_both_sides_and_stay_inside(size: int, stride: int):
    other = np.random.default_rng(1)
    for height in lengths():
        width = int(other.choice(lengths()))
        found = windows((height, width), (size, size), (stride, stride))
        rows = list(dict.fromkeys(window.y0 for window in found))
        columns = list(dict.fromkeys(window.x0 for window in found))
        assert rows == starts_by_hand(height, size, stride)
        assert columns == starts_by_hand(width, size, stride)
        assert found == [Window(y, min(y + size, height), x, min(x + size, width)) for y in rows for x in columns]
        for firsts, length in ((rows, height), (columns, width)):
            covered = np.zeros(length, bool)
            for first in firsts:
                assert 0 <= first
                assert first + min(size, length) <= length  # inside, and as long as can be
                covered[first : first + size] = True
            assert covered.all()
            assert firsts[-1] == max(0, length - size)  # the last one ends where the scene ends
            assert all(first % stride == 0 for first in firsts[:-1])


def test_every_pixel_of_a_small_scene_by_brute_force():
    for shape in [(7, 12), (8, 8), (3, 20), (9, 13)]:
        hits = np.zeros(shape, int)
        for window in windows(shape, (8, 6), (4, 5)):
            hits[window.slices] += 1
        assert hits.min() >= 1


@pytest.mark.parametrize(("size", "stride"), [(8, 0), (8, 9), (8, -1)])
def test_windows_with_gaps_are_refused(size: int, stride: int):
    with pytest.raises(ConfigError, match=r"leave gaps or do not move on; expected 0 < stride <= size"):
        windows((20, 20), (size, size), (stride, stride))
