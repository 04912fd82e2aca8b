"""Group normalisation against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg.ops import kernels
from pfseg.ops.groupnorm import GroupNorm
from pfseg.runtime import jt


@pytest.mark.parametrize("own_loops", [True, False])
def test_group_norm(own_loops, monkeypatch):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 6, 3, 5)) * 2 + 50).astype(np.float32)
    upstream = rng.standard_normal(x.shape).astype(np.float32)
    norm = GroupNorm(6, groups=3, relu=True)
    norm.weight.assign(rng.uniform(0.5, 1, 6).astype(np.float32))
    norm.bias.assign(rng.standard_normal(6).astype(np.float32))

    def reference(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(2, 3, -1)
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
        affine = [part.numpy()[:, None, None] for part in (norm.weight, norm.bias)]
        return np.maximum(groups.reshape(x.shape) * affine[0] + affine[1], 0)

    if not own_loops:
        monkeypatch.setattr(kernels, "active", lambda: True)
    given = jt.array(x)
    y = norm(given)
    np.testing.assert_allclose(y.numpy(), reference(x.astype(np.float64)), atol=1e-4)
    gradient = jt.grad((y * jt.array(upstream)).sum(), given).numpy()
    direction = rng.standard_normal(x.shape)
    slope = [(reference(x + sign * 1e-5 * direction) * upstream).sum() for sign in (1, -1)]
    np.testing.assert_allclose((gradient * direction).sum(), (slope[0] - slope[1]) / 2e-5, rtol=1e-3)
