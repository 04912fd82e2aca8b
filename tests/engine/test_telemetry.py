from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfseg.engine.telemetry import gradient_norms, memory_mib
from pfseg.runtime import jt


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


def test_memory_is_that_of_this_process():
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    assert memory_mib()["rank_mib"] == pytest.approx(resident, rel=0.05)
