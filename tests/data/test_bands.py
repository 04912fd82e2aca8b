"""Images of any number of bands, from the file to the batch."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from data.building import augmentation, folder_dataset, scene_dataset, train_loader
from data.fakes import tif, write

from pfseg.data.base import Scene
from pfseg.data.display import displayed
from pfseg.data.inputs import band_statistics
from pfseg.data.transforms import Augment, resized

COUNTS = (1, 2, 4, 5, 8)


@pytest.fixture
def bands() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (8, 60, 70), dtype=np.uint8)


def folder(root: Path, bands: np.ndarray) -> Path:
    for number in range(2):
        tif(root / "train/images" / f"{number}.tif", np.roll(bands, number, 2), photometric="minisblack")
        write(root / "train/masks" / f"{number}.png", np.tri(60, 70, dtype=np.uint8))
    return root


@pytest.mark.parametrize("count", COUNTS)
def test_batches_hold_all_bands(tmp_path, bands, count):
    order = [*range(count)][::-1]
    dataset = folder_dataset(folder(tmp_path, bands[:count]), bands=order)
    image = dataset.read(0).image
    np.testing.assert_array_equal(image, np.moveaxis(bands[order], 0, 2))
    loader = train_loader(dataset, mean=(0.5,) * count, std=(0.25,) * count, crop_size=(60, 70), batch_size=1)
    batch = next(iter(loader.epoch(0)))["image"]
    assert batch.shape == (1, count, 60, 70)
    possible = [(np.moveaxis(dataset.read(index).image, 2, 0) / 255 - 0.5) / 0.25 for index in range(2)]
    assert min(np.abs(batch[0] - each).max() for each in possible) < 1e-5


@pytest.mark.parametrize("count", COUNTS)
def test_windows_of_scenes_hold_all_bands(tmp_path, bands, count):
    root = folder(tmp_path, bands[:count])
    scene = Scene("0", "train", root / "train/images/0.tif", root / "train/masks/0.png")
    dataset = scene_dataset([scene], bands=[*range(count)])
    for number, (_, window) in enumerate(dataset.samples):
        sample = dataset.read(number)
        height, width = window.shape
        np.testing.assert_array_equal(sample.image[:height, :width], np.moveaxis(bands[:count, *window.slices], 0, 2))
        np.testing.assert_array_equal(sample.mask, dataset.read_mask(number))


STRONG = {"hflip": 0.5, "vflip": 0.5, "rot90": True, "rotate": 20, "blur": (0.5, 1), "scale_range": (0.5, 2)}


@pytest.mark.parametrize("count", COUNTS)
def test_geometry_is_that_of_each_band(bands, count):
    """A band is changed as it would be in an image of three of it."""
    image, mask = np.moveaxis(bands[:count], 0, 2).copy(), np.zeros((60, 70), np.uint8)
    augment = augmentation(**STRONG)
    for seed in range(6):
        found, _ = augment(image, mask, np.random.default_rng(seed), (48, 48))
        for band in range(count):
            three = cv2.merge([bands[band]] * 3)
            expected, _ = augment(three, mask, np.random.default_rng(seed), (48, 48))
            assert np.abs(found[..., band].astype(int) - expected[..., 0]).max() <= 1  # OpenCV's own ways differ


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_changed_band_by_band(bands, count, change):
    """Grey stays grey; the hue, which is one of three bands alone, stays as it is."""
    image, mask = np.moveaxis(bands[:count], 0, 2).copy(), np.zeros((60, 70), np.uint8)
    augment: Augment = augmentation(**{change: 0.4})
    found, _ = augment(image, mask, np.random.default_rng(1), (60, 70))
    assert found.shape == image.shape and found.dtype == np.uint8
    if change == "hue" or (change == "saturation" and count == 1):
        np.testing.assert_array_equal(found, image)
    else:
        assert (found != image).any()
    grey = np.repeat(image[..., :1], count, axis=2)
    found, _ = augment(grey, mask, np.random.default_rng(1), (60, 70))
    assert not np.ptp(found, axis=2).any()


def test_three_bands_are_shown(bands):
    image = np.moveaxis(bands, 0, 2)
    np.testing.assert_array_equal(displayed(image, [7, 0, 3]), image[..., [7, 0, 3]])
    np.testing.assert_array_equal(displayed(image, None), image[..., :3])
    np.testing.assert_array_equal(displayed(image[..., :2], None), image[..., [0, 0, 0]])
    assert displayed(image[..., :3], None).base is not None
    assert resized(image, (30, 35), cv2.INTER_AREA).shape == (30, 35, 8)


def test_mean_and_deviation_are_measured(tmp_path, bands):
    """Over all images, without pixels that hold no data, which are black."""
    bands[:, :10] = 0
    dataset = folder_dataset(folder(tmp_path, bands[:4]), bands=[0, 1, 2, 3])
    shown: list[tuple[int, int]] = []
    mean, std = band_statistics(dataset, lambda *parts: shown.append(parts))
    valid = bands[:4, 10:].reshape(4, -1) / 255
    np.testing.assert_allclose(mean, valid.mean(1), atol=0.01)
    np.testing.assert_allclose(std, valid.std(1), atol=0.01)
    assert shown == [(0, 2), (1, 2), (2, 2)]
