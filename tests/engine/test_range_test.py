from __future__ import annotations

import pytest

from pfseg.engine.range_test import suggest


def test_the_rate_of_the_steepest_descent():
    rates = [-6 + i / 4 for i in range(16)]  # too few to be smoothed
    losses = [4.0] * 6 + [3.8, 3.0, 2.5, 2.2, 2.1, 2.0, 2.4, 5.0, 20.0, 3.0]  # what comes after the least doesn't count
    assert suggest(list(zip(rates, losses, strict=True))) == pytest.approx(10 ** rates[6])
