"""How sure a prediction is, against values computed by hand; and what several networks disagree about."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_networks import sliding

from pfseg.inference.certainty import confidence, entropy, margin

SURE = [1.0, 0.0, 0.0, 0.0]
EVEN = [0.25] * 4
MIXED = [0.5, 0.3, 0.2, 0.0]


def planes(*pixels: list[float]) -> np.ndarray:
    """Probabilities (K, 1, pixels)."""
    return np.array(pixels, np.float32).T[:, None]


def test_measures():
    given = planes(SURE, EVEN, MIXED)
    np.testing.assert_allclose(confidence(given)[0], [1, 0.25, 0.5])
    np.testing.assert_allclose(margin(given)[0], [1, 0, 0.2], atol=1e-6)
    by_hand = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(4)
    np.testing.assert_allclose(entropy(given)[0], [0, 1, by_hand], atol=1e-6)
    np.testing.assert_allclose(margin(given[None])[0], margin(given))


def test_a_single_class_is_sure():
    one = np.ones((1, 2, 2), np.float32)
    assert (margin(one) == 1).all() and (entropy(one) == 0).all()


def network(*logits: float):
    """The same logits at every pixel."""

    def predict(batch: np.ndarray) -> np.ndarray:
        shape = (len(batch), len(logits), *batch.shape[2:])
        return np.broadcast_to(np.array(logits, np.float32)[None, :, None, None], shape).copy()

    return predict


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ([(0, 0)], 0.0),
        ([(2, 0), (2, 0)], 0.0),
        ([(50, 0), (0, 50)], 1.0),
        ([(50, 0, 0), (0, 50, 0)], np.log(2) / np.log(3)),
        ([(0, 0), (50, 0)], (-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) - np.log(2) / 2) / np.log(2)),
    ],
)
def test_disagreement(networks: list[tuple[float, ...]], expected: float):
    count = len(networks[0])
    how = sliding(*(network(*logits) for logits in networks), num_classes=count, disagreement=True)
    image = np.zeros((3, 32, 64), np.float32)
    found = how.probabilities(image)
    assert found.shape == (count + 1, 32, 64)
    np.testing.assert_allclose(found[count], expected, atol=1e-5)
    each = [np.exp(logits) / np.exp(logits).sum() for logits in networks]
    np.testing.assert_allclose(found[:count, 0, 0], np.mean(each, axis=0), atol=1e-6)
    in_windows = sliding(
        *(network(*logits) for logits in networks), num_classes=count, disagreement=True, window=(32, 32), overlap=0.5
    )
    np.testing.assert_allclose(in_windows.probabilities(image), found, atol=1e-5)


def test_the_class_is_that_of_the_mean():
    """One network's own label would be 0."""
    how = sliding(network(0.2, 0), network(0, 3))
    assert (how.labels(np.zeros((3, 32, 32), np.float32)) == 1).all()
