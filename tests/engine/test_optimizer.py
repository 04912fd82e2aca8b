from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pfseg.config import run_settings
from pfseg.engine.optimizer import build_optimizer, export_optimizer, load_optimizer, scale_lr
from pfseg.errors import CheckpointError
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt


def network():
    return jt.nn.Sequential(jt.nn.Conv(3, 2, 1), BatchNorm2d(2))


def sgd(**settings: Any) -> run_settings.Sgd:
    plain = {"name": "sgd", "lr": 0.1, "scale_lr": "none", "reference_batch": 16}
    return run_settings.Sgd(**plain | {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False} | settings)


def adam(**settings: Any) -> run_settings.Adam:
    plain = {"name": "adam", "lr": 0.1, "scale_lr": "none", "reference_batch": 16}
    return run_settings.Adam(**plain | {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0} | settings)


def test_the_state_goes_out_and_in():
    model, other = network(), network()
    optimizer = build_optimizer(sgd(), model)
    optimizer.step((model(jt.ones((1, 3, 2, 2))) * 2 + model[0].weight.sum()).sum())
    arrays = export_optimizer(model, optimizer)
    assert "optimizer/values/0.weight" in arrays
    assert "optimizer/values/1.running_mean" not in arrays
    again = build_optimizer(sgd(), other)
    load_optimizer(other, again, arrays, "x")
    for key, value in export_optimizer(other, again).items():
        np.testing.assert_array_equal(value, arrays[key])
    assert np.abs(arrays["optimizer/values/0.weight"]).max() > 0


def test_another_optimizer():
    model = network()
    arrays = export_optimizer(model, build_optimizer(sgd(), model))
    with pytest.raises(
        CheckpointError, match=r"last lacks optimizer/m/0\.weight: it was trained with another optimizer"
    ):
        load_optimizer(model, build_optimizer(adam(), model), arrays, "last")


def test_learning_rate_follows_the_global_batch():
    rates = [scale_lr(sgd(scale_lr=rule), 64) for rule in ("none", "linear", "sqrt")]
    assert rates == pytest.approx([0.1, 0.4, 0.2])
