from __future__ import annotations

import cv2
import numpy as np
import pytest

from pfseg.data.edges import edge_map


def halves() -> np.ndarray:
    mask = np.ones((32, 40), dtype=np.uint8)
    mask[:, 20:] = 2
    return mask


@pytest.mark.parametrize(("thickness", "columns"), [(1, [20]), (2, [19, 20]), (4, range(18, 22)), (8, range(16, 24))])
def test_class_edge_is_as_wide_as_said(thickness, columns):
    edge = edge_map(halves(), thickness=thickness)
    assert edge.dtype == np.uint8
    assert np.flatnonzero(edge[16]).tolist() == list(columns)
    assert (edge == edge[0]).all()


def test_class_edge_leaves_out_ignored_blobs():
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:20, 10:20] = 255
    assert not edge_map(mask).any()


def test_foreground_edge_is_the_published_drawing():
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:25, 12:30] = 3
    mask[15:20, 18:24] = 255
    expected = np.zeros_like(mask)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(expected, contours, -1, 1, 8)
    np.testing.assert_array_equal(edge_map(mask, rule="foreground"), expected)
    assert edge_map(mask, rule="foreground")[10, 12] == 1


def test_foreground_edge_is_blind_between_classes_and_sees_ignore():
    # Everything is foreground: only the border of the image is drawn.
    assert edge_map(halves(), rule="foreground")[16, 10:30].sum() == 0
    blob = np.zeros((40, 40), dtype=np.uint8)
    blob[15:25, 15:25] = 255
    assert edge_map(blob, rule="foreground").any()


def test_mask_is_left_alone():
    mask = halves()
    edge_map(mask, rule="foreground")
    edge_map(mask)
    np.testing.assert_array_equal(mask, halves())
