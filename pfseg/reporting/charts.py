"""Curves as inline SVG: ticks, scales, smoothing. The page's script adds the read-out under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pfseg.reporting.rendering import render

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 420, 250  # small enough that a phone shows the text at its size
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 28
_MAX_POINTS = 300  # of a curve; a longer one is drawn as the range of each stretch
_LOG_RATIO = 50.0  # a scale that spans more is logarithmic
_DOTTED = 40  # curves of so few points show them


@dataclass
class Curve:
    """Values of a run over its steps; `color` is the run's number on the page."""

    color: int
    name: str
    points: Points


@dataclass
class _Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)


def chart(title: str, curves: Sequence[Curve], *, loss: bool = False, over: str = "step") -> Markup:
    """Draw those curves over steps, or what `over` names, that have points; returns a `<figure>`, empty without any.

    A `loss` is drawn as a moving average, the values themselves faintly behind it, on a logarithmic scale where they
    span more than a factor of 50.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return Markup()
    lines = [smooth(curve.points) if loss else curve.points for curve in curves]
    x, y = _scales(curves, lines, loss)
    marks = log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high)
    return render(
        "chart.html.j2",
        title=title,
        log=y.log,
        frame={"width": WIDTH, "height": HEIGHT, "left": _LEFT, "right": WIDTH - _RIGHT, "top": _TOP, "floor": y.start},
        x_marks=[(x(mark), tick_label(mark)) for mark in ticks(x.low, x.high) if mark == int(mark)],
        y_marks=[(y(mark), tick_label(mark)) for mark in marks],
        lines=[
            {
                "color": curve.color,
                "raw": _path(_thin(curve.points), x, y) if line is not curve.points else "",
                "path": _path(_every(line), x, y),
                "dots": [(x(step), y(value)) for step, value in line] if len(line) <= _DOTTED else [],
            }
            for curve, line in zip(curves, lines, strict=True)
        ],
        data={
            "over": over,
            "x": [x.low, x.high, x.start, x.end],
            "curves": [
                {"run": c.color, "name": c.name, "points": [(step, float(f"{v:.5g}")) for step, v in _every(line)]}
                for c, line in zip(curves, lines, strict=True)
            ],
        },
    )


def smooth(points: Points) -> Points:
    """Moving average, exponentially weighted over some 3 % of the points; short curves come back as they are."""
    if len(points) < 20:
        return points
    weight = math.exp(-30 / len(points))
    total, weights, result = 0.0, 0.0, []
    for step, value in points:
        total, weights = weight * total + value, weight * weights + 1
        result.append((step, total / weights))
    return result


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with their multiples by 2 and 5 where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = max(1, len(decades) // 6)
    marks = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
    return [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]


def tick_label(value: float) -> str:
    """A number as short as it goes: 1500 as 1.5k, 0.00001 as 1e-5."""
    if abs(value) >= 1e3:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.6g}"


def _scales(curves: Sequence[Curve], lines: Sequence[Points], may_be_log: bool) -> tuple[_Scale, _Scale]:
    steps = [step for line in lines for step, _ in line]
    values = [value for line in lines for _, value in line]
    for curve in curves:  # rare spikes may leave the picture
        ordered = sorted(value for _, value in curve.points)
        rare = len(ordered) // 50
        values += [ordered[rare], ordered[-1 - rare]]
    low, high = min(values), max(values)
    log = may_be_log and low > 0 and high / low > _LOG_RATIO
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    elif not log:
        margin = (high - low) * 0.05
        low, high = (0.0 if 0 <= low < (high - low) * 0.25 else low - margin), high + margin
    first, last = min(steps), max(steps)
    alone = first == last
    x = _Scale(first - alone, last + alone, _LEFT, WIDTH - _RIGHT)
    return x, _Scale(low, high, HEIGHT - _BOTTOM, _TOP, log)


def _path(points: Points, x: _Scale, y: _Scale) -> str:
    return "M" + "L".join(f"{x(step)} {y(value)}" for step, value in points)


def _stretches(points: Points) -> list[Points]:
    size = -(-len(points) // _MAX_POINTS)
    return [points[i : i + size] for i in range(0, len(points), size)]


def _thin(points: Points) -> Points:
    """Least and largest value of each stretch, so that a long curve keeps its spread."""
    if len(points) <= _MAX_POINTS:
        return points
    ranges = [(stretch[0][0], [value for _, value in stretch]) for stretch in _stretches(points)]
    return [(step, end(values)) for step, values in ranges for end in (min, max)]


def _every(points: Points) -> Points:
    """The last point of each stretch: enough of a smooth curve."""
    return [stretch[-1] for stretch in _stretches(points)]
