"""Class weights that follow from masks."""

from __future__ import annotations

import numpy as np
from building import settings

from pfseg.build_data import build_dataset, settle_class_weights
from pfseg.data.base import parse_classes
from pfseg.data.census import Census

CLASSES = [{"name": name, "color": colour} for name, colour in (("a", "FF0000"), ("b", "00FF00"), ("c", "0000FF"))]


def census() -> Census:
    """Class a has 6 of 8 labelled pixels in two masks, b 2 in one, c none."""
    found = Census(parse_classes(CLASSES))
    found.add(np.array([[0, 0], [0, 0]]))
    found.add(np.array([[0, 0], [1, 1], [255, 255]]))
    return found


def test_median_frequency():
    # shares of the masks that they are in: 6 in two, 2 in one; weights 1/3 and 1/2 before they get a mean of 1
    np.testing.assert_allclose(census().class_weights("median_frequency"), [0.8, 1.2, 1.0])


def test_effective_number():
    inverse = 1 / (1 - np.exp([-6 / 4, -2 / 4]))  # 4 pixels in a class on average
    expected = [*(inverse / inverse.mean()), 1.0]
    np.testing.assert_allclose(census().class_weights("effective_number"), expected)
    assert Census(parse_classes(CLASSES)).class_weights("effective_number").tolist() == [1, 1, 1]


def test_a_rule_becomes_numbers():
    given = settings("loss", "ce", {"class_weights": "median_frequency"}, "dataset.train_images=3", "dataset.size=64")
    dataset, shown = build_dataset(given.dataset, "train"), []
    settle_class_weights(given.loss, given.dataset, dataset, lambda done, total: shown.append((done, total)))
    counted = Census(dataset.classes)
    for index in range(3):
        counted.add(dataset.read_mask(index))
    np.testing.assert_allclose(given.loss.class_weights, counted.class_weights("median_frequency"))
    assert shown == [(0, 3), (1, 3), (2, 3)]
    settle_class_weights(given.loss, given.dataset, dataset, shown.append)  # nothing is left to do
