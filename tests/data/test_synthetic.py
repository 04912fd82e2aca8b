from __future__ import annotations

import numpy as np
import pytest
from data.building import synthetic

from pfseg.errors import ConfigError
from pfseg.metrics.confusion import confusion_matrix, scores


def test_sample_has_the_promised_form():
    sample = synthetic("train", size=100).read(3)
    assert sample.image.shape == (100, 100, 3)
    assert sample.mask.shape == (100, 100)
    assert sample.image.dtype == sample.mask.dtype == np.uint8
    assert sample.mask.max() < 6
    assert sample.name == "train_0003"


def test_scenes_depend_on_seed_split_and_index_only():
    train, again = (synthetic("train", size=64, train_images=n) for n in (4, 8))
    np.testing.assert_array_equal(train.read(2).image, again.read(2).image)
    others = [train.read(1), synthetic("val", size=64).read(2)]
    others.append(synthetic("train", size=64, seed=1).read(2))
    for other in others:
        assert (train.read(2).image != other.image).mean() > 0.5


def test_lengths():
    assert len(synthetic("train", train_images=5, val_images=2)) == 5
    assert len(synthetic("val", train_images=5, val_images=2)) == 2


def test_every_class_is_frequent():
    dataset = synthetic("train", train_images=24)
    masks = [dataset.read(index).mask for index in range(24)]
    shares = np.bincount(np.concatenate(masks).ravel(), minlength=6) / 24 / 256**2
    assert shares[5] > 0.012  # cars are small
    assert (shares[:5] > 0.06).all()
    for label in range(6):
        assert sum((mask == label).any() for mask in masks) > 10


def test_colour_alone_does_not_solve_it():
    """The best label per colour (16 levels a channel), learnt from 32 scenes, fails on 8 others."""

    def codes(image: np.ndarray) -> np.ndarray:
        return (image >> 4).astype(np.int64) @ np.array([256, 16, 1])

    train, val = synthetic("train"), synthetic("val")
    seen = np.zeros((6, 4096), dtype=np.int64)
    for sample in map(train.read, range(32)):
        np.add.at(seen, (sample.mask, codes(sample.image)), 1)
    best = seen.argmax(axis=0)
    confusion = sum(confusion_matrix(best[codes(s.image)], s.mask, 6) for s in map(val.read, range(8)))
    assert scores(confusion, [info.name for info in val.classes])["mIoU"] < 40


def test_faulty_settings():
    with pytest.raises(ConfigError, match="unknown split 'test'; known are train, val"):
        synthetic("test")
