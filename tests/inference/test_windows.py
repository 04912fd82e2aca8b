"""Where windows lie."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import Recorder, image, pixelwise, sliding

from pfseg.data.tiling import Window
from pfseg.inference.blending import window_rows
from pfseg.inference.sliding import WindowGrid
from pfseg.inference.views import softmax


@pytest.mark.parametrize(("stride", "min_size", "expected"), [(32, 1, (64, 96)), (1, 1, (33, 70)), (32, 80, (80, 96))])
def test_whole_images_are_padded_to_the_stride(stride: int, min_size: int, expected: tuple[int, int]):
    network = Recorder()
    how = sliding(network, stride=stride, min_size=min_size)
    found = how.probabilities(image(33, 70))
    assert network.shapes == [(1, 3, *expected)]
    np.testing.assert_array_equal(found, softmax(pixelwise(image(33, 70)[None]))[0])


def test_windows_lie_at_the_step_that_the_overlap_gives():
    grid = WindowGrid((896, 896), 1 - 512 / 896, 32, 1)
    assert [place.x0 for place in grid.windows((896, 2000))] == [0, 512, 1024, 1104]
    assert WindowGrid((4, 4), 0.99, 32, 1).windows((4, 6)) == [
        Window(0, 4, 0, 4),
        Window(0, 4, 1, 5),
        Window(0, 4, 2, 6),
    ]


@pytest.mark.parametrize(("size", "window", "starts"), [(512, 512, [0]), (1000, 512, [0, 488]), (9, 3, [0, 3, 6])])
def test_windows_side_by_side(size: int, window: int, starts: list[int]):
    grid = WindowGrid((1, window), 0.0, 32, 1)
    assert [place.x0 for place in grid.windows((1, size))] == starts


@pytest.mark.parametrize("window", [1, 2, 3, 7, 10])
def test_windows_cover_everything_without_leaving_the_image(window: int):
    for size in range(window, 40):
        starts = [place.x0 for place in WindowGrid((1, window), 0.0, 32, 1).windows((1, size))]
        assert starts == sorted(set(starts))
        assert (starts[0], starts[-1]) == (0, size - window)
        assert len(starts) == -(-size // window)
        assert {place + start for start in starts for place in range(window)} == set(range(size))


def test_rows_of_windows():
    rows = window_rows(WindowGrid((4, 4), 0.5, 32, 1).windows((7, 9)), 7)
    assert [(row.top, row.bottom, row.overlap, len(row.windows)) for row in rows] == [
        (0, 2, 2, 4),
        (2, 3, 3, 4),
        (3, 7, 0, 4),
    ]
