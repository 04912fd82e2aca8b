from __future__ import annotations

import numpy as np
import pytest

from pfseg.errors import CheckpointError
from pfseg.weights.matching import match_weights

A = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_match_sorts_every_name():
    weights = {"x.a": A, "x.b": np.ones((3, 1, 1, 1)), "x.c": np.ones((16, 2)), "x.t": A, "x.d": A}
    state = {"a": (3, 4), "b": (3,), "c": (6, 2), "t": (4, 3), "e": (1,)}
    match = match_weights(state, weights, rename=lambda key: key.removeprefix("x."))
    assert list(match.loaded) == ["a", "b"] and match.loaded["a"] is A and match.loaded["b"].shape == (3,)
    assert match.reshaped == ["b"] and match.skipped == ["x.d"] and match.missing == ["e"]
    assert match.mismatched == {"c": "file (16, 2), network (6, 2)", "t": "file (3, 4), network (4, 3)"}
    assert match.report().splitlines() == [
        "loaded 2 of the network's 5 weights; 1 reshaped (b)",
        "1 missing in the file (e); "
        "2 of another shape, not loaded (c: file (16, 2), network (6, 2), t: file (3, 4), network (4, 3))",
        "1 in the file only (x.d)",
    ]


def test_report_is_short():
    assert match_weights({"a": (3, 4)}, {"a": A}).report() == "loaded 1 of the network's 1 weights"
    report = match_weights({f"w{index}": (1,) for index in range(9)}, {}).report()
    assert report == "loaded 0 of the network's 9 weights\n9 missing in the file (w0, w1, w2, and 6 more)"


def test_two_weights_of_one_name():
    with pytest.raises(CheckpointError, match="a and b of the weights file both become x: keep one of them"):
        match_weights({}, {"a": A, "b": A}, rename=lambda key: "x")


def test_weights_of_three_channels_are_spread_over_other_numbers_of_bands():
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    for count in (1, 2, 4, 8):
        match = match_weights({"a": (4, count, 3, 3)}, {"a": weights})
        found = match.loaded["a"]
        assert found.shape == (4, count, 3, 3) and found.dtype == np.float32 and match.widened == ["a"]
        np.testing.assert_allclose(found.sum(1), weights.sum(1) + (weights.mean(1) if count > 3 else 0), rtol=1e-4)
        if count > 3:
            np.testing.assert_array_equal(found[:, :3], weights)
            np.testing.assert_allclose(found[:, 3], weights.mean(1) / (count - 3), rtol=1e-5)
    assert "1 with the weights of red, green and blue spread over the bands (a)" in match.report()
    assert not match_weights({"a": (4, 4, 3, 3)}, {"a": weights[:, :2]}).loaded
