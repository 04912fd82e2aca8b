"""Learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Callable

NAMES = ("constant", "cosine", "poly", "scl_poly")


def scale_lr(lr: float, rule: str, global_batch: int, reference_batch: int) -> float:
    """Fit a learning rate found for one global batch to another.

    Args:
        lr: of `reference_batch`.
        rule: `none` leaves it; `linear` multiplies it by the ratio of the batches (Goyal et al., "Accurate, Large
            Minibatch SGD", 2017); `sqrt` by the ratio's root, which suits Adam.
        global_batch: images per update, over all ranks and accumulated batches.
        reference_batch: images per update that `lr` is meant for.

    Raises:
        ValueError: unknown `rule`.
    """
    factors = {"none": 1.0, "linear": global_batch / reference_batch, "sqrt": math.sqrt(global_batch / reference_batch)}
    if rule not in factors:
        raise ValueError(f"scaling {rule!r} is unknown; use one of {', '.join(factors)} (config: optimizer.scale_lr)")
    return lr * factors[rule]


def make_schedule(
    name: str,
    *,
    base_lr: float,
    total_steps: int,
    steps_per_epoch: int,
    per: str = "step",
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    power: float = 0.9,
    legacy: bool = False,
    end: float = 0.0,
    rescale: float = 1.0,
    repower: float = 1.5,
    relax_epoch: int | None = None,
) -> Callable[[int], float]:
    """Build lr(step) for steps 0 .. total_steps - 1.

    Args:
        name: `constant`; `poly`: base_lr * (1 - t)**power; `scl_poly`: poly until `relax_epoch`, then
            base_lr * rescale * (1 - u)**repower with u running from 0 to 1 over what is left; `cosine`: from base_lr
            down to base_lr * end.
        base_lr: learning rate at t = 0.
        total_steps: length of the run.
        steps_per_epoch: steps in one pass over the data.
        per: `step` (t moves with every step) or `epoch` (t moves with every epoch, as published).
        warmup_steps: steps over which a factor rises linearly from `warmup_start` to 1.
        warmup_start: first factor.
        power: exponent of `poly`.
        legacy: epoch e trains at t = (e + 1) / epochs, so that the last one trains at 0, as the published code does;
            only with `per=epoch`.
        end: see `cosine`.
        rescale: see `scl_poly`.
        repower: see `scl_poly`.
        relax_epoch: see `scl_poly`.

    Raises:
        ValueError: unknown `name`.
    """
    if name not in NAMES:
        raise ValueError(f"schedule {name!r} is unknown; use one of {', '.join(NAMES)} (config: schedule)")
    epochs = math.ceil(total_steps / steps_per_epoch)

    def position(step: int) -> tuple[float, float]:
        """(time done, whole time) in the schedule's unit."""
        if per == "epoch":
            return step // steps_per_epoch + (1 if legacy else 0), epochs
        return step, total_steps

    def shape(step: int) -> float:
        now, whole = position(step)
        left = max(0.0, 1.0 - now / whole)
        if name == "cosine":
            return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
        if name == "scl_poly" and relax_epoch is not None:
            switch = relax_epoch if per == "epoch" else relax_epoch * steps_per_epoch
            if now >= switch:
                return float(rescale * max(0.0, 1.0 - (now - switch) / max(whole - switch, 1)) ** repower)
        return 1.0 if name == "constant" else float(left**power)

    def lr(step: int) -> float:
        warm = 1.0
        if step < warmup_steps:
            warm = warmup_start + (1.0 - warmup_start) * (step + 1) / warmup_steps
        return base_lr * warm * shape(step)

    return lr
