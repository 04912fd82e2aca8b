from __future__ import annotations

import math

import pytest

from pfseg.engine.schedule import make_schedule, scale_lr


def rates(name: str, total: int = 10, per_epoch: int = 5, **options: object) -> list[float]:
    lr = make_schedule(name, base_lr=2.0, total_steps=total, steps_per_epoch=per_epoch, **options)
    return [lr(step) for step in range(total)]


def test_constant():
    assert rates("constant") == [2.0] * 10


def test_poly_per_step():
    assert rates("poly", power=0.9) == pytest.approx([2 * (1 - step / 10) ** 0.9 for step in range(10)])


def test_poly_per_epoch_counts_a_partial_epoch():
    assert rates("poly", total=12, per="epoch", power=1.0) == pytest.approx([2.0] * 5 + [4 / 3] * 5 + [2 / 3] * 2)


def test_legacy_poly_is_one_epoch_ahead_and_ends_at_zero():
    assert rates("poly", per="epoch", legacy=True) == pytest.approx([2 * 0.5**0.9] * 5 + [0.0] * 5)


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


def test_unknown_name():
    with pytest.raises(ValueError, match=r"schedule 'step' is unknown; use one of constant, cosine, poly, scl_poly"):
        rates("step")


def test_learning_rate_follows_the_global_batch():
    assert [scale_lr(0.1, rule, 64, 16) for rule in ("none", "linear", "sqrt")] == pytest.approx([0.1, 0.4, 0.2])
    with pytest.raises(ValueError, match=r"scaling 'cubic' is unknown; use one of none, linear, sqrt \(config: optimi"):
        scale_lr(0.1, "cubic", 1, 1)
