from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from data.building import folder_dataset
from data.fakes import write

from pfseg.data.base import ClassInfo
from pfseg.data.census import Census, count_masks, indexed_census

CLASSES = (ClassInfo("no", (0, 0, 0)), ClassInfo("yes", (9, 9, 9)), ClassInfo("perhaps", (5, 5, 5)))


def test_shares_leave_out_what_is_ignored():
    census = Census(CLASSES)
    census.add(np.array([[0, 0, 1, 255]], np.uint8))
    census.add(np.array([[0, 0, 0, 0]], np.uint8))
    pixels, images, ignored = census.shares()
    assert pixels.tolist() == pytest.approx([6 / 7, 1 / 7, 0])
    assert images.tolist() == [1, 0.5, 0]
    assert ignored == pytest.approx(1 / 8)


def test_of_nothing():
    census = Census(CLASSES)
    assert census.shares()[2] == 0
    census.add(np.full((2, 2), 255, np.uint8))
    assert census.shares()[2] == 1


def test_binary_masks_of_0_and_255_are_told_of(tmp_path):
    """255 is ignored, so that the second class never occurs: each pixel is as it was meant with `id: 255`."""
    table = [{"name": "background", "color": "000000"}, {"name": "foreground", "color": "FFFFFF"}]
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    for number in range(3):
        write(tmp_path / "train/images" / f"{number}.png", np.zeros((40, 40, 3), np.uint8))
        write(tmp_path / "train/masks" / f"{number}.png", mask)
    absent, ignored = count_masks(folder_dataset(tmp_path, classes=table), tmp_path, "train").warnings()
    assert absent.startswith("foreground: no pixel of this class in 3 masks, so that nothing can be learnt")
    assert ignored == (
        "25 % of the pixels have no class and are ignored; if 255 in the masks stands for foreground, add `id: 255` to "
        "that class"
    )
    table = [table[0] | {"id": 0}, table[1] | {"id": 255}]
    assert not count_masks(folder_dataset(tmp_path, classes=table), tmp_path, "train").warnings()


def test_counts_of_a_preparation_are_used(tmp_path):
    rows = [{"pixels": {"no": 3, "yes": 4}, "ignored": 1}, {"pixels": {"no": 8}, "ignored": 0}, {"name": "no mask"}]
    index = {"classes": [{"name": info.name} for info in CLASSES], "splits": {"train": {"patches": rows}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    census = indexed_census(CLASSES, tmp_path, "train")
    assert census is not None
    assert (census.pixels.tolist(), census.images.tolist(), census.ignored, census.masks) == (
        [11, 4, 0],
        [2, 1, 0],
        1,
        2,
    )
    assert indexed_census(CLASSES, tmp_path, "val") is None
    assert indexed_census(CLASSES[:2], tmp_path, "train") is None


def test_a_mask_that_cannot_be_read_is_left_out(tmp_path):
    for number in range(2):
        write(tmp_path / "train/images" / f"{number}.png", np.zeros((4, 4, 3), np.uint8))
        write(tmp_path / "train/masks" / f"{number}.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "train/masks/0.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4)))[1].tobytes()[:-20])
    assert count_masks(folder_dataset(tmp_path), None, "train").masks == 1
