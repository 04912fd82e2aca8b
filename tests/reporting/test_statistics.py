from __future__ import annotations

import math

import pytest

from pfseg.reporting.charts import Curve, chart, log_ticks, smooth, tick_label, ticks
from pfseg.reporting.statistics import paired_difference, spread, t_quantile


@pytest.mark.parametrize(
    ("freedom", "confidence", "expected"),
    [
        (1, 0.95, 12.7062), (2, 0.95, 4.3027), (3, 0.95, 3.1824), (4, 0.95, 2.7764), (5, 0.95, 2.5706),
        (9, 0.95, 2.2622), (10, 0.95, 2.2281), (30, 0.95, 2.0423), (100, 0.95, 1.9840), (4, 0.99, 4.6041),
        (1, 0.5, 1.0), (7, 0.8, 1.4149),
    ],
)  # fmt: skip
def test_t_quantile_agrees_with_the_printed_tables(freedom: int, confidence: float, expected: float):
    assert t_quantile(freedom, confidence) == pytest.approx(expected, abs=6e-5)


def test_spread_of_the_sample():
    found = spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (found.n, found.mean) == (8, 5.0) and found.std == pytest.approx(math.sqrt(32 / 7))
    assert spread([3.0]).std is None


def test_paired_difference_over_the_common_seeds():
    found = paired_difference({0: 40.0, 1: 42.0, 2: 41.0, 9: 99.0}, {0: 41.0, 1: 44.0, 2: 44.0, 8: 0.0})
    assert found is not None and found.n == 3 and found.mean == pytest.approx(2.0)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # the standard deviation is 1
    assert not found.significant
    sure = paired_difference({s: 0.0 for s in range(5)}, {s: 2.0 + s / 100 for s in range(5)})
    assert sure is not None and sure.significant
    assert paired_difference({0: 1.0, 1: 1.0}, {1: 2.0, 2: 2.0}) is None


def test_ticks_are_round_and_inside():
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.31, 0.52) == [0.35, 0.4, 0.45, 0.5]
    assert ticks(-1.0, 1.0) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert log_ticks(0.009, 1200) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert log_ticks(0.15, 6) == pytest.approx([0.2, 0.5, 1, 2, 5])
    assert [tick_label(v) for v in (0, 0.25, 1500, 40_000, 2e6, 1e-5)] == ["0", "0.25", "1.5k", "40k", "2M", "1e-5"]


def test_smoothing_is_an_average_of_the_past():
    flat = [(float(s), 3.0) for s in range(100)]
    assert smooth(flat) == [(s, pytest.approx(3.0)) for s, _ in flat]
    jump = smooth([(float(s), float(s >= 50)) for s in range(100)])
    assert jump[49][1] == 0 and 0 < jump[51][1] < jump[60][1] < jump[99][1] <= 1
    assert smooth(flat[:10]) is not None and smooth(flat[:10]) == flat[:10]


def test_a_long_curve_is_thinned_and_keeps_its_spread():
    points = [(float(s), 1.0 + (s % 2)) for s in range(50_000)]
    figure = chart("loss", [Curve(0, "a", points)], loss=True)
    assert len(figure) < 60_000
    raw = figure.split('class="raw" d="M')[1].split('"')[0].split("L")
    heights = {float(pair.split()[1]) for pair in raw}
    assert len(heights) == 2 and max(heights) - min(heights) > 100


def test_scales_of_a_chart():
    assert chart("t", [Curve(0, "a", [])]) == ""
    assert "log scale" in chart("t", [Curve(0, "a", [(1, 0.01), (2, 5.0)])], loss=True)
    for harmless in ([(1, 0.0), (2, 5.0)], [(1, 1.0), (2, 5.0)], [(5, 2.0)], [(5, 0.0), (6, 0.0)]):
        assert "log scale" not in chart("t", [Curve(0, "a", harmless)], loss=True)
