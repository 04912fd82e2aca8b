"""Learning rate as a pure function of the step, so that a resumed run needs no state for it.

The shapes are functions of the time that has passed, counted in steps or (`per=epoch`, as published) in epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pfseg.config import run_settings

Schedule = Callable[[int], float]


class Time(NamedTuple):
    """Where a run stands: time that has passed, length of the run and of an epoch, all in steps or all in epochs."""

    now: int
    end: int
    epoch: int

    def left(self, start: int = 0) -> float:
        """Share of the time since `start` that is left, at least 0."""
        return max(0.0, 1.0 - (self.now - start) / max(self.end - start, 1))


def constant(settings: run_settings.Constant, time: Time) -> float:
    """1 throughout."""
    return 1.0


def poly(settings: run_settings.PolyCurve, time: Time) -> float:
    """From 1 to 0 by left^power."""
    return float(time.left() ** settings.power)


def range_test(settings: run_settings.RangeTest, time: Time) -> float:
    """From `start` to 1, by the same factor at each step (Smith, "Cyclical Learning Rates", 2017)."""
    return float(settings.start ** (1.0 - time.now / max(time.end - 1, 1)))


def scl_poly(settings: run_settings.SclPoly, time: Time) -> float:
    """As `poly` until `relax_epoch`, then from `rescale` to 0 by left^repower."""
    if time.now < (switch := settings.relax_epoch * time.epoch):
        return poly(settings, time)
    return float(settings.rescale * time.left(switch) ** settings.repower)


def cosine(settings: run_settings.Cosine, time: Time) -> float:
    """Half a cosine from 1 to `end`."""
    return settings.end + (1.0 - settings.end) * 0.5 * (1.0 + math.cos(math.pi * (1.0 - time.left())))


SHAPES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "poly": poly,
    "scl_poly": scl_poly,
    "cosine": cosine,
    "range_test": range_test,
}


def make_schedule(
    settings: run_settings.ScheduleSettings, *, base_lr: float, total_steps: int, steps_per_epoch: int
) -> Schedule:
    """Learning rate of the steps 0 .. total_steps - 1: base_lr * warm-up * shape."""
    # The published code runs one epoch ahead, so that the last epoch trains at 0.
    ahead = int(isinstance(settings, run_settings.PolyCurve) and settings.legacy)
    epochs = math.ceil(total_steps / steps_per_epoch)

    def lr(step: int) -> float:
        time = Time(step, total_steps, steps_per_epoch)
        if settings.per == "epoch":
            time = Time(step // steps_per_epoch + ahead, epochs, 1)
        rise = 1.0
        if step < settings.warmup_steps:
            rise = settings.warmup_start + (1.0 - settings.warmup_start) * (step + 1) / settings.warmup_steps
        return base_lr * rise * SHAPES[settings.name](settings, time)

    return lr
