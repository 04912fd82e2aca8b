from __future__ import annotations

import numpy as np
import pytest

from pfseg.errors import CheckpointError
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt
from pfseg.weights.transfer import export_weights, load_weights


def network():
    return jt.nn.Sequential(jt.nn.Conv(3, 2, 1), BatchNorm2d(2))


def test_weights_go_out_and_in():
    arrays, other = export_weights(network()), network()
    assert set(arrays) >= {"0.weight", "1.running_mean"}
    load_weights(other, arrays, "x")
    for key, value in export_weights(other).items():
        np.testing.assert_array_equal(value, arrays[key])


def test_a_wrong_shape_changes_nothing():
    model = network()
    arrays = export_weights(model)
    wrong = {key: value + 1 for key, value in arrays.items()} | {"1.bias": np.zeros(3, np.float32)}
    said = r"last: 1\.bias has shape \(3,\), expected \(2,\); it is of another model or class count"
    with pytest.raises(CheckpointError, match=said):
        load_weights(model, wrong, "last")
    np.testing.assert_array_equal(export_weights(model)["0.weight"], arrays["0.weight"])


def test_a_missing_weight():
    model = network()
    arrays = export_weights(model)
    del arrays["1.weight"]
    with pytest.raises(CheckpointError, match=r"last lacks 1\.weight: it is of another model; check model and"):
        load_weights(model, arrays, "last")
