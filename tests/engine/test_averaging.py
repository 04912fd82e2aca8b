from __future__ import annotations

import numpy as np

from pfseg.engine.averaging import WeightAverage
from pfseg.runtime import jt
from pfseg.weights.transfer import export_weights


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
