from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfseg.config import run_settings
from pfseg.engine.optimizer import (
    WeightAverage,
    build_optimizer,
    export_optimizer,
    gradient_norms,
    load_optimizer,
    scale_lr,
    set_lr,
)
from pfseg.errors import CheckpointError, ConfigError
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt
from pfseg.weights.transfer import export_weights

GROUPS: dict[str, Any] = {"decay_norms": True, "lr_factors": {}}


def network():
    return jt.nn.Sequential(jt.nn.Conv(3, 2, 1), BatchNorm2d(2))


def sgd(**settings: Any) -> run_settings.Sgd:
    plain = {"name": "sgd", "lr": 0.1, "scale_lr": "none", "reference_batch": 16, **GROUPS}
    return run_settings.Sgd(**plain | {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False} | settings)


def adam(**settings: Any) -> run_settings.Adam:
    plain = {"name": "adam", "lr": 0.1, "scale_lr": "none", "reference_batch": 16, **GROUPS}
    return run_settings.Adam(**plain | {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0} | settings)


def test_the_state_goes_out_and_in():
    model, other = network(), network()
    optimizer = build_optimizer(sgd(), model)
    optimizer.step((model(jt.ones((1, 3, 2, 2))) * 2 + model[0].weight.sum()).sum())
    arrays = export_optimizer(optimizer)
    assert "optimizer/values/0.weight" in arrays
    assert "optimizer/values/1.running_mean" not in arrays
    again = build_optimizer(sgd(), other)
    load_optimizer(again, arrays, "x")
    for key, value in export_optimizer(again).items():
        np.testing.assert_array_equal(value, arrays[key])
    assert np.abs(arrays["optimizer/values/0.weight"]).max() > 0


def test_another_optimizer():
    model = network()
    arrays = export_optimizer(build_optimizer(sgd(), model))
    with pytest.raises(
        CheckpointError, match=r"last lacks optimizer/m/0\.weight: it was trained with another optimizer"
    ):
        load_optimizer(build_optimizer(adam(), model), arrays, "last")


def stepped(model: Any, **changes: Any) -> Any:
    """The change of each weight in a step of SGD, all gradients being 1."""
    before = export_weights(model)
    optimizer = build_optimizer(sgd(**changes), model)
    set_lr(optimizer, 0.1)
    optimizer.step(sum(weight.sum() for weight in model.parameters()))
    return {key: before[key] - value for key, value in export_weights(model).items()}, optimizer


def test_parts_learn_at_rates_of_their_own_and_norms_do_not_decay():
    model = network()
    weight = export_weights(model)["0.weight"]
    change, optimizer = stepped(model, lr_factors={"0": 10.0}, weight_decay=0.5, decay_norms=False)
    np.testing.assert_allclose(change["0.weight"], 1.0 * (1 + 0.5 * weight), rtol=1e-5)
    np.testing.assert_allclose(change["0.bias"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(change["1.weight"], 0.1, rtol=1e-5)  # 1 at the start, which would decay
    again = build_optimizer(sgd(), network())  # in other groups
    load_optimizer(again, export_optimizer(optimizer), "x")
    for key, value in export_optimizer(again).items():
        np.testing.assert_array_equal(value, export_optimizer(optimizer)[key])


def test_a_factor_for_a_part_that_is_not_there():
    with pytest.raises(ConfigError, match=r"lr_factors: the network has no part 'heads'; its parts are \['0', '1'\]"):
        build_optimizer(sgd(lr_factors={"heads": 10.0}), network())


def test_learning_rate_follows_the_global_batch():
    rates = [scale_lr(sgd(scale_lr=rule), 64) for rule in ("none", "linear", "sqrt")]
    assert rates == pytest.approx([0.1, 0.4, 0.2])


def test_the_average_forgets_the_first_weights_fast():
    model = jt.nn.Sequential(jt.nn.Conv(3, 2, 1))
    start = export_weights(model)["0.weight"]
    average = WeightAverage(model, decay=0.5)
    model[0].weight.assign(jt.array(start + 1))
    average.update(model, step=0)  # keeps 1 / 10
    np.testing.assert_allclose(average.export()["0.weight"], start + 0.9, rtol=1e-5)
    average.update(model, step=98)  # keeps 0.5: 99 / 108 is more
    np.testing.assert_allclose(average.export()["0.weight"], start + 0.95, rtol=1e-5)
    average.load(average.export() | {"0.weight": start})
    np.testing.assert_array_equal(average.export()["0.weight"], start)


class Two(jt.nn.Module):
    """Two parts, and a parameter that doesn't learn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = jt.nn.Linear(3, 4), jt.nn.Linear(4, 1)
        self.fixed = jt.array([9.0]).stop_grad()

    def execute(self, x: Any) -> Any:
        return self.second(self.first(x) * self.fixed)


def test_gradient_norms_of_all_and_of_each_part():
    model = Two()
    optimizer = jt.optim.SGD(model.parameters(), 0.1)
    x = jt.array(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    for _ in range(2):  # gradients of two batches add up
        optimizer.backward(model(x).sqr().sum())
    names, values = gradient_norms(model, optimizer)
    weights = [model.first.weight, model.first.bias, model.second.weight, model.second.bias]
    gradients = [2 * g.numpy().astype(np.float64) for g in jt.grad(model(x).sqr().sum(), weights)]
    squares = [float((g**2).sum()) for g in gradients]
    first, second = squares[0] + squares[1], squares[2] + squares[3]
    assert names == ["grad_norm", "grad_norm/first", "grad_norm/second"]
    assert values.numpy() == pytest.approx(np.sqrt([first + second, first, second]), rel=1e-5)
