from __future__ import annotations

import math

import boundary_reference as reference
import cv2
import numpy as np
import pytest

from pfseg.errors import DataError
from pfseg.metrics.boundary import THRESHOLDS, BoundaryScores

COARSE = (0.05, 0.1, 0.2)  # of small images: as many pixels as the published ones of large images


def noise(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    return rng.integers(0, classes, shape, dtype=np.uint8)


def fields(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Areas with ragged outlines: the largest of one smoothed field a class."""
    layers = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 3) for _ in range(classes)]
    return np.argmax(layers, axis=0).astype(np.uint8)


def check(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, thresholds: tuple[float, ...], ratio: float):
    """Compare the scores of some images with those of the slow definition."""
    scores = BoundaryScores(classes, thresholds=thresholds, ratio=ratio)
    for pred, mask in pairs:
        scores.add(pred, mask)
    names = [str(label) for label in range(classes)]
    found = scores.scores(names)
    cleared = [(np.where(mask == 255, 255, pred), mask) for pred, mask in pairs]
    for threshold in thresholds:
        each = [[reference.f_score(*pair, label, threshold) for pair in cleared] for label in range(classes)]
        wanted = [100 * np.mean(known) if (known := [v for v in row if v == v]) else math.nan for row in each]
        key = f"boundary_F@{threshold:g}"
        np.testing.assert_allclose([found[f"{key}/{name}"] for name in names], wanted, rtol=0, atol=1e-9)
        if not np.isnan(wanted).all():
            assert found[key] == pytest.approx(np.nanmean(wanted), abs=1e-9)
    parts = np.array([[reference.iou_parts(*pair, label, ratio) for pair in cleared] for label in range(classes)])
    for name, (common, union) in zip(names, parts.sum(1), strict=True):
        wanted = 100 * common / union if union else math.nan
        assert found[f"boundary_IoU/{name}"] == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (16, 31), (40, 33)])
@pytest.mark.parametrize("make", [noise, fields])
def test_equal_to_the_slow_definition(make, shape: tuple[int, int]):
    rng = np.random.default_rng(shape)
    pairs = []
    for _ in range(3):
        pred, mask = make(rng, shape, 4), make(rng, shape, 4)
        mask[rng.random(shape) < 0.1] = 255
        pairs.append((pred, mask))
    check(pairs, 5, COARSE, 0.1)


@pytest.mark.parametrize("classes", [2, 8, 9, 17, 33, 65, 100])
def test_any_number_of_classes(classes: int):
    rng = np.random.default_rng(classes)
    mask = noise(rng, (24, 24), classes)
    mask[:4] = 255
    check([(noise(rng, (24, 24), classes), mask)], classes, (0.06,), 0.02)


@pytest.mark.parametrize("size", [(300, 400), (900, 700)])
def test_a_real_size_at_the_published_thresholds(size: tuple[int, int]):
    mask = np.zeros(size, np.uint8)
    pred = mask.copy()
    cv2.circle(mask, (150, 150), 60, 1, -1)
    cv2.circle(pred, (153, 149), 60, 1, -1)
    cv2.rectangle(pred, (200, 250), (215, 260), 2, -1)
    mask[-20:, -50:] = 255
    scores = BoundaryScores(3)
    scores.add(pred, mask)
    found, cleared = scores.scores(["a", "b", "c"]), np.where(mask == 255, 255, pred)
    for threshold in THRESHOLDS:
        wanted = stamped(cleared == 1, mask == 1, math.ceil(threshold * math.hypot(*size)))
        assert found[f"boundary_F@{threshold:g}/b"] == pytest.approx(100 * wanted, abs=1e-9)
        assert found[f"boundary_F@{threshold:g}/c"] == 0, "in the prediction only"


def stamped(pred: np.ndarray, mask: np.ndarray, radius: int) -> float:
    """F-score of one class by distances between all pairs of boundary pixels."""
    points = [np.argwhere(sum(part != np.roll(part, s, (0, 1)) for s in ((0, -1), (-1, 0), (-1, -1))) > 0)
              for part in (pred, mask)]  # fmt: skip
    squares = ((points[0][:, None] - points[1][None]) ** 2).sum(2) <= radius**2
    precision, recall = squares.any(1).mean(), squares.any(0).mean()
    return 2 * precision * recall / (precision + recall)


def test_by_hand():
    # Boundary pixels of the right part: columns 1 (truth) and 3 (prediction), rows 0 to 4; diagonal 8.6 px.
    mask, pred = np.zeros((5, 7), np.uint8), np.zeros((5, 7), np.uint8)
    mask[:, 2:], pred[:, 4:] = 1, 1
    scores = BoundaryScores(3, thresholds=(0.1, 0.2), ratio=0.1)
    scores.add(pred, mask)
    found = scores.scores(["left", "right", "none"])
    assert (found["boundary_F@0.1"], found["boundary_F@0.2"]) == (0, 100), "1 px and 2 px"
    assert math.isnan(found["boundary_F@0.2/none"])
    # Bands of 1 px of the right part: frames of 5x5 and 5x3 px, 16 and 12 px, which share the last column and the
    # outer rows of columns 4 and 5.
    assert found["boundary_IoU/right"] == pytest.approx(100 * 9 / 19)


def test_one_pixel_off_lies_within_the_published_thresholds():
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 30:70] = 1
    scores = BoundaryScores(2)
    scores.add(np.roll(mask, 1, 1), mask)
    found = scores.scores(["a", "b"])
    assert [found[f"boundary_F@{t:g}"] for t in THRESHOLDS] == [100] * 4
    assert found["boundary_IoU"] < 100


def test_classes_of_one_map_only_and_full_images():
    scores = BoundaryScores(4, thresholds=(0.1,))
    mask, pred = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    scores.add(pred, mask)  # class 0 fills both: no boundary in either
    assert scores.totals[0].tolist() == [1, 0, 0, 0]
    pred[:, 4:] = 1  # now only the prediction has a boundary of 0, and 1 is in the prediction only
    scores.add(pred, mask)
    scores.add(np.full((8, 8), 2, np.uint8), np.full((8, 8), 3, np.uint8))  # both alone, without a boundary
    assert scores.totals[:2].tolist() == [[1, 0, 0, 0], [2, 1, 1, 1]]
    assert scores.scores(list("abcd"))["boundary_F@0.1"] == 12.5


def test_nothing_counted():
    scores = BoundaryScores(2)
    scores.add(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    assert all(math.isnan(value) for value in scores.scores(["a", "b"]).values())


def test_totals_add_up():
    rng = np.random.default_rng(0)
    pairs = [(noise(rng, (20, 20), 3), noise(rng, (20, 20), 3)) for _ in range(4)]
    whole, *parts = (BoundaryScores(3) for _ in range(3))
    for index, pair in enumerate(pairs):
        whole.add(*pair)
        parts[index % 2].add(*pair)
    np.testing.assert_allclose(parts[0].totals + parts[1].totals, whole.totals, rtol=1e-15)


def test_wrong_input():
    scores, zeros = BoundaryScores(2), np.zeros((2, 2), np.uint8)
    with pytest.raises(DataError, match=r"shape \(2, 2\) and mask of shape \(2, 3\) cannot be compared"):
        scores.add(zeros, np.zeros((2, 3), np.uint8))
    with pytest.raises(DataError, match=r"mask has labels from 2 to 2; expected 0..1 or 255 \(config: dataset.classes"):
        scores.add(zeros, zeros + 2)
    with pytest.raises(DataError, match="prediction has labels from 3 to 3"):
        scores.add(zeros + 3, zeros)


def test_excluded_classes_are_left_out_of_the_means_alone():
    rng = np.random.default_rng(0)
    found = BoundaryScores(3)
    found.add(rng.integers(0, 3, (40, 50)), rng.integers(0, 3, (40, 50)))
    everything, kept = found.scores(["a", "b", "c"]), found.scores(["a", "b", "c"], exclude=["a"])
    for key in (key for key in everything if "/" not in key):
        assert kept[key] == pytest.approx((everything[f"{key}/b"] + everything[f"{key}/c"]) / 2)
    assert {k: v for k, v in kept.items() if "/" in k} == {k: v for k, v in everything.items() if "/" in k}
    assert np.isnan(found.scores(["a", "b", "c"], exclude=["a", "b", "c"])["boundary_IoU"])
