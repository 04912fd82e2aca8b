from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfseg.engine.evaluator import Evaluator
from pfseg.engine.telemetry import gradient_norms, memory_mib, predict_edges
from pfseg.models import SegOutput
from pfseg.runtime import jt

MEAN, STD = [0.5] * 3, [0.25] * 3


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


def network(image: Any) -> SegOutput:
    """Edges where the red channel is bright."""
    return SegOutput(image, (image[:, 1:2] * 0, image[:, :1] * 100))


def evaluator(**options: Any) -> Evaluator:
    return Evaluator(None, num_classes=2, mean=MEAN, std=STD, **options)  # type: ignore[arg-type]


def half_red(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :, 0] = 255
    return image


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((64, 96), {"window": (32, 64)}, (32, 64)),
        ((20, 96), {"window": (32, 64)}, (20, 64)),
        ((40, 50), {"window": None}, (40, 50)),
        ((20, 50), {"window": None, "min_size": 64}, (20, 50)),
        ((64, 96), {"window": (32, 32), "scale": 0.5}, (64, 64)),
    ],
)
def test_edges_of_the_first_window(size: tuple[int, int], options: dict[str, Any], expected: tuple[int, int]):
    found = predict_edges(network, evaluator(**options), half_red(*size))
    assert found is not None and found.shape == expected and found.dtype == np.uint8
    middle = size[1] // 2
    assert (found[:, : middle - 1] == 0).all() and (found[:, middle + 1 :] == 255).all()


def test_a_network_without_edges_has_none():
    assert predict_edges(lambda image: SegOutput(image), evaluator(window=(32, 32)), half_red(32, 32)) is None
