from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data.building import folder_dataset, synthetic

from pfseg.data.base import find_overlap


def overlap(root: Path, train: object) -> str | None:
    splits = {"train": train, "val": "val"}
    sets = [folder_dataset(root, split=split, splits=splits) for split in splits]
    return find_overlap(*sets)


@pytest.fixture
def town(town: Path) -> Path:
    """With validation images that differ from the training images of the same names."""
    for number in range(2):
        path = town / "val" / "images" / f"tile {number}.jpg"
        path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    return town


def test_only_images_of_the_same_name_and_content_count(town):
    assert overlap(town, "train") is None  # of equal names, with other pixels


def test_validation_images_that_are_copied_into_a_training_folder(town):
    shutil.copytree(town / "train", town / "all")
    shutil.copy(town / "val" / "images" / "tile 1.jpg", town / "all" / "images" / "tile 1.jpg")
    warning = overlap(town, "all")
    assert warning is not None
    assert warning.startswith("1 of the 2 validation images are also in the training split, such as")
    assert "val/images/tile 1.jpg" in warning
    assert "does not measure" in warning
    assert "config: dataset.splits" in warning


def test_the_validation_folder_trained_on(town):
    warning = overlap(town, ["train", "val"])
    assert warning is not None
    assert warning.startswith("2 of the 2 validation images")


def test_sets_without_files():
    assert find_overlap(synthetic("train"), synthetic("val")) is None
