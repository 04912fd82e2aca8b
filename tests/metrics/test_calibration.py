"""Temperature scaling and its scores, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.metrics.calibration import BINS, calibration, fit_temperature


def drawn(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn by the probabilities of some logits, and these logits times `temperature`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 4)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > rng.random((count, 1))).argmax(1)
    return logits * np.float32(temperature), labels


def test_scores_by_hand():
    """Two pixels of 0.9 and 0.62, the second wrong."""
    probabilities = np.array([[0.9, 0.1], [0.62, 0.38]])
    found = calibration(np.log(probabilities).astype(np.float32), np.array([0, 1]), 1.0)
    assert found.ece == pytest.approx(100 * (abs(1 - 0.9) + abs(0 - 0.62)) / 2, abs=1e-4)
    assert found.nll == pytest.approx(-(np.log(0.9) + np.log(0.38)) / 2, abs=1e-6)
    assert found.brier == pytest.approx((0.1**2 + 0.1**2 + 0.62**2 + 0.62**2) / 2, abs=1e-6)
    assert [found.pixels[13], found.pixels[9], sum(found.pixels), len(found.pixels)] == [1, 1, 2, BINS]
    assert (found.accuracy[13], found.accuracy[9]) == (1, 0)
    assert (found.confidence[13], found.confidence[9]) == pytest.approx((0.9, 0.62))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float):
    logits, labels = drawn(40_000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    before, after = calibration(logits, labels, 1.0), calibration(logits, labels, found)
    assert after.nll <= before.nll and after.ece < 1
    if temperature != 1:
        assert after.ece < before.ece / 2 and after.brier < before.brier


def test_a_perfect_network_and_a_useless_one_stay_in_the_range():
    labels = np.arange(400) % 2
    logits = np.eye(2, dtype=np.float32)[labels]
    assert 0.05 <= fit_temperature(logits, labels) < 0.1
    assert fit_temperature(logits, 1 - labels) == pytest.approx(20, rel=1e-3)
