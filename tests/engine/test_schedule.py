from __future__ import annotations

import math
from typing import Any

import pytest

from pfseg.config import run_settings
from pfseg.engine.schedule import make_schedule

KINDS = {
    "constant": run_settings.Constant,
    "poly": run_settings.Poly,
    "scl_poly": run_settings.SclPoly,
    "cosine": run_settings.Cosine,
    "range_test": run_settings.RangeTest,
}
PLAIN = {"per": "step", "warmup_steps": 0, "warmup_start": 0.0}


def rates(name: str, total: int = 10, per_epoch: int = 5, **options: Any) -> list[float]:
    legacy = {"legacy": False} if name.endswith("poly") else {}
    settings = KINDS[name](**{"name": name} | PLAIN | legacy | options)
    lr = make_schedule(settings, base_lr=2.0, total_steps=total, steps_per_epoch=per_epoch)
    return [lr(step) for step in range(total)]


def test_constant():
    assert rates("constant") == [2.0] * 10


def test_range_test_rises_by_the_same_factor():
    assert rates("range_test", start=1e-3, total=4) == pytest.approx([0.002, 0.02, 0.2, 2.0])


def test_poly_per_step():
    assert rates("poly", power=0.9) == pytest.approx([2 * (1 - step / 10) ** 0.9 for step in range(10)])


def test_poly_per_epoch_counts_a_partial_epoch():
    assert rates("poly", total=12, per="epoch", power=1.0) == pytest.approx([2.0] * 5 + [4 / 3] * 5 + [2 / 3] * 2)


def test_legacy_poly_is_one_epoch_ahead_and_ends_at_zero():
    assert rates("poly", per="epoch", legacy=True, power=0.9) == pytest.approx([2 * 0.5**0.9] * 5 + [0.0] * 5)


def test_scl_poly_switches():
    options = {"relax_epoch": 1, "rescale": 0.5, "repower": 1.5, "power": 0.9}
    expected = [2 * (1 - step / 10) ** 0.9 for step in range(5)] + [1.0 * (1 - step / 5) ** 1.5 for step in range(5)]
    assert rates("scl_poly", **options) == pytest.approx(expected)
    per_epoch = [2.0] * 5 + [2 * 0.5 * 1.0] * 5
    assert rates("scl_poly", per="epoch", **options) == pytest.approx(per_epoch)


def test_cosine():
    found = rates("cosine", end=0.1)
    assert found[0] == 2.0
    assert found[5] == pytest.approx(2 * 0.55)
    assert found[9] == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(0.9 * math.pi))))


def test_warmup_rises_to_the_schedule_of_that_step():
    assert rates("constant", warmup_steps=4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates("constant", warmup_steps=2, warmup_start=0.5)[:3] == pytest.approx([1.5, 2.0, 2.0])
    assert rates("poly", power=1.0, warmup_steps=2)[:3] == pytest.approx([2 * 0.5, 2 * 0.9, 2 * 0.8])
