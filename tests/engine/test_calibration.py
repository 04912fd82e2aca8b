"""Temperature scaling of a network that is too sure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.building import eval_loader, folder_dataset
from data.fakes import write
from numpy_networks import evaluation_settings

from pfseg.data.folder import FolderDataset
from pfseg.engine.calibration import CalibratingEvaluator, calibrate
from pfseg.errors import DataError

SIDE, TOO_SURE = 64, 3.0


@pytest.fixture
def images(tmp_path: Path) -> FolderDataset:
    """Four images whose masks are drawn by the probabilities of their red; a stripe has no class."""
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        sure = 1 / (1 + np.exp(-logit(pixels[..., 0])))
        mask = (rng.random((SIDE, SIDE)) < sure).astype(np.uint8)
        mask[:8] = 255
        write(tmp_path / "train" / "images" / f"{number}.png", pixels)
        write(tmp_path / "train" / "masks" / f"{number}.png", mask)
    return folder_dataset(tmp_path)


def logit(red: np.ndarray) -> np.ndarray:
    return np.asarray((red / 255 - 0.5) / 0.5 * 2)


def network(batch: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(batch[:, 0]), TOO_SURE * 2 * batch[:, 0]], 1)


def collected(images: FolderDataset, **settings: float) -> CalibratingEvaluator:
    evaluator = CalibratingEvaluator(eval_loader(images), **evaluation_settings(**settings))
    evaluation = evaluator.run(network, lambda done, total: None)
    assert evaluation.images == 4 and evaluation.confusion.sum() == 4 * SIDE * (SIDE - 8)
    return evaluator


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_it_becomes_as_sure_as_it_is_right(images: FolderDataset, scale: float):
    found = calibrate(collected(images, scale=scale).kept)
    assert found.temperature == pytest.approx(TOO_SURE, rel=0.25)
    assert found.after.ece < found.before.ece / 2 and found.after.nll < found.before.nll
    assert (found.fitted_on, found.measured_on) == (2, 2)
    assert found.dump()["after"]["ece"] == found.after.ece


def test_ranks_are_put_together(images: FolderDataset, tmp_path: Path):
    whole = collected(images)
    whole.save(tmp_path / "rank1.npz")
    other = CalibratingEvaluator(eval_loader(images), **evaluation_settings())
    other.merge(tmp_path / "rank1.npz")
    assert other.kept.keys() == whole.kept.keys()
    assert all(np.array_equal(other.kept[name], kept) for name, kept in whole.kept.items())


def test_one_image_is_not_enough(images: FolderDataset):
    (name, kept), *_ = collected(images).kept.items()
    with pytest.raises(DataError, match=r"calibrate=true found 1 images with labelled pixels; it needs two or more"):
        calibrate({name: kept})
