"""Images in windows against the image as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import Recorder, image, lopsided, pixelwise, sliding

from pfseg.inference.views import softmax


def test_one_window_over_the_image_is_the_whole_image_exactly():
    whole = sliding(lopsided).probabilities(image(64, 96))
    np.testing.assert_array_equal(whole, softmax(lopsided(image(64, 96)[None]))[0])
    for overlap in (0, 0.5):
        one = sliding(lopsided, window=(64, 96), overlap=overlap).probabilities(image(64, 96))
        np.testing.assert_array_equal(one, whole)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(50, 70), (10, 70), (50, 20), (10, 10), (32, 48)])
def test_windows_of_a_pixelwise_network_leave_no_trace(shape: tuple[int, int], overlap: float, batch_size: int):
    network = Recorder()
    how = sliding(network, window=(32, 48), overlap=overlap, batch_size=batch_size)
    found = how.probabilities(image(*shape))
    assert found.shape == (2, *shape)
    assert found.dtype == np.float32
    assert {batch[2:] for batch in network.shapes} == {(32, 48)}
    assert max(batch[0] for batch in network.shapes) <= batch_size
    np.testing.assert_allclose(found, softmax(pixelwise(image(*shape)[None]))[0], atol=1e-6)


def test_a_constant_stays_constant():
    def constant(batch: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([0, 1, -1]).reshape(1, 3, 1, 1), (len(batch), 1, *batch.shape[2:]))

    options = {"window": (32, 32), "overlap": 0.4, "scales": (0.5, 1, 1.7), "flips": "d4"}
    found = sliding(constant, num_classes=3, **options).probabilities(image(75, 90))
    expected = softmax(np.float32([0, 1, -1]).reshape(1, 3, 1, 1))[0]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=3e-7)


def test_labels_of_one_window_are_those_of_its_logits():
    def close(batch: np.ndarray) -> np.ndarray:
        """Logits that differ by less than probabilities can."""
        return np.stack([np.full_like(batch[:, 0], 0.1), np.full_like(batch[:, 0], np.float32(0.1) + 8e-9)], 1)

    for window in (None, (64, 64)):
        how = sliding(close, window=window, overlap=0.5 if window else 0)
        np.testing.assert_array_equal(how.labels(image(40, 50)), np.ones((40, 50), np.uint8))
    blended = sliding(lopsided, window=(32, 32), overlap=0.5, flips="h")
    assert blended.labels(image(40, 50)).dtype == np.uint8
    np.testing.assert_array_equal(blended.labels(image(40, 50)), blended.probabilities(image(40, 50)).argmax(0))
