from __future__ import annotations

import numpy as np
import pytest

from pfseg.engine import state
from pfseg.errors import CheckpointError
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt


def network():
    return jt.nn.Sequential(jt.nn.Conv(3, 2, 1), BatchNorm2d(2))


def test_weights_and_optimizer_go_out_and_in():
    model, other = network(), network()
    optimizer = state.build_optimizer("sgd", model, lr=0.1, momentum=0.9)
    optimizer.step((model(jt.ones((1, 3, 2, 2))) * 2 + model[0].weight.sum()).sum())
    arrays = state.export(model, optimizer)
    assert set(arrays) >= {"0.weight", "1.running_mean", "optimizer/values/0.weight"}
    assert "optimizer/values/1.running_mean" not in arrays
    state.load_model(other, arrays, "x")
    again = state.build_optimizer("sgd", other, lr=0.1, momentum=0.9)
    state.load_optimizer(other, again, arrays, "x")
    for key, value in state.export(other, again).items():
        np.testing.assert_array_equal(value, arrays[key])


def test_a_wrong_shape_changes_nothing():
    model = network()
    arrays = state.export(model)
    wrong = {key: value + 1 for key, value in arrays.items()} | {"1.bias": np.zeros(3, np.float32)}
    said = r"last: 1\.bias has shape \(3,\), expected \(2,\); it is of another model or class count"
    with pytest.raises(CheckpointError, match=said):
        state.load_model(model, wrong, "last")
    np.testing.assert_array_equal(state.export(model)["0.weight"], arrays["0.weight"])


def test_a_missing_weight():
    model = network()
    arrays = state.export(model)
    del arrays["1.weight"]
    with pytest.raises(CheckpointError, match=r"last lacks 1\.weight: it is of another model; check model and"):
        state.load_model(model, arrays, "last")


def test_another_optimizer():
    model = network()
    arrays = state.export(model, state.build_optimizer("sgd", model, lr=0.1, momentum=0.9))
    adam = state.build_optimizer("adam", model, lr=0.1, betas=[0.9, 0.99])
    with pytest.raises(
        CheckpointError, match=r"last lacks optimizer/m/0\.weight: it was trained with another optimizer"
    ):
        state.load_optimizer(model, adam, arrays, "last")
    with pytest.raises(ValueError, match="optimizer 'lion' is unknown; use one of sgd, adam, adamw"):
        state.build_optimizer("lion", model, lr=0.1)


def test_the_average_forgets_the_first_weights_fast():
    model = network()
    start = state.export(model)["0.weight"]
    average = state.WeightAverage(model, decay=0.5)
    model[0].weight.assign(jt.array(start + 1))
    average.update(model, step=0)  # keeps 1 / 10
    np.testing.assert_allclose(average.export()["0.weight"], start + 0.9, rtol=1e-5)
    average.update(model, step=98)  # keeps 0.5: 99 / 108 is more
    np.testing.assert_allclose(average.export()["0.weight"], start + 0.95, rtol=1e-5)
    average.load(average.export() | {"0.weight": start})
    np.testing.assert_array_equal(average.export()["0.weight"], start)
