from __future__ import annotations

import numpy as np
import pytest

from pfseg.errors import DataError
from pfseg.metrics.confusion import confusion_matrix, scores


def test_confusion_rows_are_the_truth():
    mask = np.array([[0, 0, 1], [1, 255, 2]], dtype=np.uint8)
    pred = np.array([[0, 1, 1], [1, 2, 0]], dtype=np.int32)
    confusion = confusion_matrix(pred, mask, 3)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_parts_add_up():
    rng = np.random.default_rng(0)
    pred, mask = rng.integers(0, 4, (2, 6, 50, 50))
    parts = sum(confusion_matrix(p, m, 4) for p, m in zip(pred, mask, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(pred, mask, 4))


def test_scores_by_hand():
    # truth a: 6 right, 2 taken for b; truth b: 1 taken for a, 3 right.
    result = scores(np.array([[6, 2], [1, 3]]), ["a", "b"])
    assert result["precision/a"] == pytest.approx(100 * 6 / 7)
    assert result["recall/a"] == pytest.approx(100 * 6 / 8)
    assert result["precision/b"] == pytest.approx(100 * 3 / 5)
    assert result["recall/b"] == pytest.approx(100 * 3 / 4)
    assert result["IoU/a"] == pytest.approx(100 * 6 / 9)
    assert result["IoU/b"] == pytest.approx(100 * 3 / 6)
    assert result["F1/a"] == pytest.approx(100 * 12 / 15)
    assert result["F1/b"] == pytest.approx(100 * 6 / 9)
    assert result["mIoU"] == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert result["mF1"] == pytest.approx(100 * (12 / 15 + 6 / 9) / 2)
    assert result["OA"] == pytest.approx(75.0)
    assert result["mAcc"] == pytest.approx(75.0)
    assert result["fwIoU"] == pytest.approx(100 * (8 * 6 / 9 + 4 * 3 / 6) / 12)
    chance = (8 * 7 + 4 * 5) / 144
    assert result["kappa"] == pytest.approx((0.75 - chance) / (1 - chance))


def test_absent_classes_are_nan_and_left_out():
    # c occurs nowhere, b is in the truth but never found.
    result = scores(np.array([[4, 0, 0], [4, 0, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert np.isnan([result["IoU/c"], result["F1/c"], result["recall/c"], result["precision/b"]]).all()
    assert result["IoU/b"] == result["recall/b"] == result["F1/b"] == 0
    assert result["mIoU"] == pytest.approx(25.0)
    assert result["mAcc"] == pytest.approx(50.0)
    assert result["kappa"] == pytest.approx(0.0)


def test_nothing_counted_is_nan_without_a_warning():
    assert all(np.isnan(value) for value in scores(np.zeros((2, 2), dtype=np.int64), ["a", "b"]).values())


def test_perfect_with_one_class():
    result = scores(np.array([[5, 0], [0, 0]]), ["a", "b"])
    assert result["mIoU"] == result["OA"] == 100
    assert np.isnan(result["kappa"])


def test_wrong_input():
    with pytest.raises(DataError, match=r"shape \(2,\) and mask of shape \(3,\)"):
        confusion_matrix(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(DataError, match=r"mask has labels from 0 to 2; expected 0..1 or 255"):
        confusion_matrix(np.zeros(2, int), np.array([0, 2]), 2)
    with pytest.raises(DataError, match="prediction has labels from 0 to 5"):
        confusion_matrix(np.array([0, 5]), np.zeros(2, int), 2)


def test_excluded_classes_are_left_out_of_the_means_alone():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [2, 0, 8]])
    everything = scores(confusion, ["a", "b", "c"])
    result = scores(confusion, ["a", "b", "c"], exclude=["b"])
    for mean, key in (("mIoU", "IoU"), ("mF1", "F1"), ("mAcc", "recall")):
        assert result[mean] == pytest.approx((everything[f"{key}/a"] + everything[f"{key}/c"]) / 2)
        assert result[mean] != pytest.approx(everything[mean])
    means = ("mIoU", "mF1", "mAcc")
    assert {k: v for k, v in result.items() if k not in means} == {
        k: v for k, v in everything.items() if k not in means
    }
