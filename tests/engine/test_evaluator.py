"""Scores in windows, with networks that are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data.building import eval_loader
from numpy_networks import evaluation_settings

from pfseg.data.base import ClassInfo, Sample, SegmentationDataset
from pfseg.engine.evaluator import Evaluator
from pfseg.errors import DataError
from pfseg.metrics.boundary import BoundaryScores
from pfseg.models import SegOutput


class Pictures(SegmentationDataset):
    """Images given as arrays; the truth is class 1 where red is above 127, and unknown in the first row."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self.classes = (ClassInfo("dark", (0, 0, 0)), ClassInfo("red", (255, 0, 0)))
        self.warnings = []
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample:
        image = self.images[index]
        mask = (image[..., 0] > 127).astype(np.uint8)
        mask[0] = 255
        return Sample(image, mask, f"{index}.png")


class Network:
    """Says class 1 where red is above 127, and remembers the batches."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, image: Any) -> Any:
        self.seen.append(image)
        red = image[:, :1]
        return np.concatenate([-red, red], 1)


def evaluator(dataset: SegmentationDataset, **options: Any) -> Evaluator:
    return Evaluator(eval_loader(dataset), **evaluation_settings(**{"num_panels": 4} | options))


def ignore(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("window", [None, (32, 48), (20, 200), (64, 64)])
def test_windows_give_what_the_whole_image_gives(window: tuple[int, int] | None, batch_size: int):
    pictures, network = Pictures((50, 70), (33, 40), (64, 64)), Network()
    found = evaluator(pictures, window=window, batch_size=batch_size).run(network, ignore)
    reds = sum(int((image[1:, :, 0] > 127).sum()) for image in pictures.images)
    pixels = sum(image[1:, :, 0].size for image in pictures.images)
    np.testing.assert_array_equal(found.confusion, [[pixels - reds, 0], [0, reds]])
    assert found.images == 3
    assert max(len(batch) for batch in network.seen) <= batch_size
    if window:
        assert {batch.shape[2:] for batch in network.seen} == {window}


@pytest.mark.parametrize(("pixels", "sizes"), [(None, [3, 2]), (2 * 64 * 64, [2, 2, 1]), (100, [1] * 5)])
def test_large_windows_share_a_forward_pass_with_fewer(pixels: int | None, sizes: list[int]):
    network = Network()
    evaluator(Pictures(*[(64, 64)] * 5), batch_size=3, batch_pixels=pixels).run(network, ignore)
    assert [len(batch) for batch in network.seen] == sizes


def test_whole_images_are_padded_with_the_mean_to_the_stride():
    network = Network()
    evaluator(Pictures((33, 70)), stride=32).run(network, ignore)
    (batch,) = network.seen
    assert batch.shape == (1, 3, 64, 96)
    assert batch[:, :, :33, :70].all()
    assert not batch[:, :, 33:].any()
    assert not batch[:, :, :, 70:].any()


def test_images_smaller_than_the_network_takes_are_padded():
    network = Network()
    evaluator(Pictures((33, 70)), stride=32, min_size=80).run(network, ignore)
    assert network.seen[0].shape == (1, 3, 80, 96)


def test_of_two_windows_the_later_wins():
    calls = iter(range(2))

    def one_class_a_window(image: Any) -> Any:
        label = next(calls)
        return np.concatenate([np.full_like(image[:, :1], 1 - label), np.full_like(image[:, :1], label)], 1)

    found = evaluator(Pictures((4, 6)), window=(4, 4)).run(one_class_a_window, ignore)
    np.testing.assert_array_equal(found.panels[0][2], [[0, 0, 1, 1, 1, 1]] * 4)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_another_scale_is_scored_on_the_full_size(scale: float):
    pictures, network = Pictures((64, 64)), Network()
    pictures.images[0][:] = 0
    pictures.images[0][:, 32:] = 255
    found = evaluator(pictures, scale=scale, window=(32, 32)).run(network, ignore)
    assert {batch.shape[2:] for batch in network.seen} == {(32, 32)}
    assert sum(map(len, network.seen)) == (1 if scale == 0.5 else 16)
    np.testing.assert_array_equal(found.confusion, [[63 * 32, 0], [0, 63 * 32]])
    assert found.panels[0][2].shape == (64, 64)


def test_progress_and_panels():
    heard: list[tuple[int, int]] = []
    found = evaluator(Pictures(*[(32, 32)] * 5), num_panels=2, batch_size=2).run(
        Network(), lambda done, total: heard.append((done, total))
    )
    assert heard == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert [panel[3] for panel in found.panels] == ["0.png", "1.png"]
    image, mask, pred, _ = found.panels[0]
    assert image.dtype == mask.dtype == pred.dtype == np.uint8
    assert image.shape == (*mask.shape, 3) == (*pred.shape, 3)


def test_boundary_scores_over_the_images():
    pictures = Pictures((40, 50), (33, 64))
    assert evaluator(pictures).run(Network(), ignore).boundary is None
    right = evaluator(pictures, boundary=True, window=(32, 32)).run(Network(), ignore).boundary
    assert set(right.scores(["dark", "red"]).values()) == {100}
    wrong = evaluator(pictures, boundary=True).run(lambda image: -Network()(image), ignore)
    expected = BoundaryScores(2)
    for _, mask, pred, _ in wrong.panels:
        expected.add(pred, mask)
    assert wrong.boundary.totals[-3].tolist() == [2, 2]
    np.testing.assert_array_equal(wrong.boundary.totals, expected.totals)


def test_nothing_to_score():
    with pytest.raises(DataError, match="no image could be read, so there is nothing to score; check the split"):
        evaluator(Pictures()).run(Network(), ignore)


def red_edges(image: Any) -> SegOutput:
    """Edges where the red channel is bright."""
    return SegOutput(image, (image[:, 1:2] * 0, image[:, :1] * 100))


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
    found = evaluator(Pictures(), **options).edges(red_edges, half_red(*size))
    assert found is not None and found.shape == expected and found.dtype == np.uint8
    middle = size[1] // 2
    assert (found[:, : middle - 1] == 0).all() and (found[:, middle + 1 :] == 255).all()


def test_a_network_without_edges_has_none():
    assert evaluator(Pictures(), window=(32, 32)).edges(lambda image: SegOutput(image), half_red(32, 32)) is None
