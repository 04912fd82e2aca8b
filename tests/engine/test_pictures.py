from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy_networks import evaluation_settings

from pfseg.engine.evaluator import Evaluator
from pfseg.engine.pictures import predict_edges
from pfseg.models import SegOutput


def network(image: Any) -> SegOutput:
    """Edges where the red channel is bright."""
    return SegOutput(image, (image[:, 1:2] * 0, image[:, :1] * 100))


def evaluator(**options: Any) -> Evaluator:
    return Evaluator(None, **evaluation_settings(**options))  # type: ignore[arg-type]


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
