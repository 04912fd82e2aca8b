"""Blending of windows in rows: equal to the whole image at once, without seams."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy_networks import sliding

from pfseg.data.normalise import Normalise
from pfseg.data.reader import Image, ImageReader
from pfseg.inference.sliding import SlidingWindows
from pfseg.prediction.rows import predict_resized, predict_rows

NORMALISE = Normalise([0.5] * 3, [0.25] * 3)
SHARES = (0.0, 0.25, 0.5)  # overlaps


def near_sighted(batch: np.ndarray) -> np.ndarray:
    """Logits from the mean of 31 px around each pixel, zeros beyond the window: it errs at the window's edges."""
    means = [[cv2.blur(plane, (31, 31), borderType=cv2.BORDER_CONSTANT) for plane in image] for image in batch]
    return 2 * np.array(means, np.float32)


def near_sighted_windows(overlap: float = 0.25, window: tuple[int, int] = (64, 64), **options) -> SlidingWindows:
    return sliding(near_sighted, num_classes=3, window=window, overlap=overlap, stride=1, **options)


def saved(path: Path, pixels: np.ndarray) -> Image:
    assert cv2.imwrite(str(path), pixels[..., ::-1])
    return ImageReader().open(path)


def predicted(image: Image, how: SlidingWindows) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) and probabilities (K, H, W)."""
    parts: list[float] = []
    found = predict_rows(image, how, NORMALISE, wanted=["probabilities"], progress=parts.append)
    rows = [deepcopy(row) for row in found]
    assert sum(parts) == image.shape[0] * image.shape[1]
    assert np.array_equal(np.concatenate([row.image for row in rows]), image.read(0, image.shape[0])[0])
    kept = np.concatenate([row.probabilities for row in rows if row.probabilities is not None])
    return np.concatenate([row.labels for row in rows]), np.moveaxis(kept, 2, 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (65, 200), (200, 65), (131, 187), (40, 90), (30, 20)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_equal_to_the_whole_image_at_once(shape, overlap, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    how = near_sighted_windows(overlap, window=(64, 48), batch_size=3)
    labels, found = predicted(saved(tmp_path / "a.png", pixels), how)
    whole = np.empty((3, *shape), np.float32)
    NORMALISE(pixels, whole)
    expected = how.probabilities(whole)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # half precision
    sure = np.diff(np.sort(expected, axis=0)[1:], axis=0)[0] > 2e-3
    assert np.array_equal(labels[sure], expected.argmax(0)[sure])


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_rows_from_anywhere_are_those_of_all(overlap, tmp_path):
    """To the last bit, as several ranks share an image."""
    pixels = np.random.default_rng(0).integers(0, 256, (309, 130, 3), np.uint8)
    image, how = saved(tmp_path / "a.png", pixels), near_sighted_windows(overlap, batch_size=3)
    wanted = ["probabilities", "margin"]
    found = partial(predict_rows, image, how, NORMALISE, wanted=wanted)
    every = [deepcopy(row) for row in found(progress=lambda count: None)]
    for first in range(1, len(every)):
        parts: list[float] = []
        for rows, expected in zip(found(first=first, progress=parts.append), every[first:], strict=True):
            assert rows.image is not None and rows.probabilities is not None
            np.testing.assert_array_equal(rows.image, expected.image)
            np.testing.assert_array_equal(rows.labels, expected.labels)
            np.testing.assert_array_equal(rows.probabilities, expected.probabilities)
            np.testing.assert_array_equal(rows.measures["margin"], expected.measures["margin"])
        assert sum(parts) == sum(rows.labels.size for rows in every[first:])


def steps(found: np.ndarray) -> np.ndarray:
    """Mean change (W - 1,) of the probabilities from one column to the next."""
    return np.abs(np.diff(found, axis=2)).mean(axis=(0, 1))


def test_no_seam_on_a_constant_image(tmp_path):
    """Towards a window's edges the network errs; away from the image's edges little of it may be left."""
    image = saved(tmp_path / "a.png", np.full((200, 200, 3), (180, 140, 120), np.uint8))
    spread = [
        np.ptp(predicted(image, near_sighted_windows(overlap))[1][:, 60:-60, 60:-60], axis=(1, 2)).max()
        for overlap in SHARES
    ]
    assert spread[0] > 0.1  # the test would show them
    assert spread[1] < spread[0] * 0.6 and spread[2] < spread[0] / 6
    exact = sliding(lambda batch: batch, num_classes=3, window=(64, 64), overlap=0.3, stride=1)
    labels, found = predicted(image, exact)
    assert not np.ptp(labels) and np.ptp(found, axis=(1, 2)).max() <= 0.0005  # as half precision rounds


def test_no_seam_on_a_textured_image(tmp_path):
    """Columns where windows meet change no more than others do."""
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.standard_normal((200, 240, 3)).astype(np.float32), (0, 0), 8)
    image = saved(tmp_path / "a.png", np.clip(150 + smooth * (60 / smooth.std()), 0, 255).astype(np.uint8))
    how = near_sighted_windows(0.0)
    ends = [window.x1 - 1 for window in how.grid.windows(image.shape) if 20 < window.x1 < 220]
    for overlap, worst in ((0.0, False), (0.25, True), (0.5, True)):
        change = steps(predicted(image, near_sighted_windows(overlap))[1])
        assert (change[ends].mean() < 1.5 * np.median(change[20:-20])) == worst, overlap


def test_windows_without_data_do_not_go_through_the_network(tmp_path):
    pixels = np.full((64, 320, 4), 200, np.uint8)
    pixels[:, 64:256, 3] = 0
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), pixels)
    seen: list[np.ndarray] = []

    def note(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return near_sighted(batch)

    how = sliding(note, num_classes=3, window=(64, 64), overlap=0.25, stride=1)
    (rows,) = predict_rows(
        ImageReader().open(path), how, NORMALISE, wanted=["probabilities"], progress=lambda count: None
    )
    assert len(seen) == 4 < len(how.grid.windows((64, 320)))
    assert np.array_equal(rows.labels == 255, pixels[..., 3] == 0)
    assert rows.probabilities is not None and not rows.probabilities[:, 64:256].any()
    assert all((batch[0][:, :, -16:] == 0).all() for batch in seen[1:2])  # the mean colour where there is no data


def test_resized_as_a_whole(tmp_path):
    pixels = np.zeros((100, 80, 3), np.uint8)
    pixels[:50, :, 0], pixels[50:, :, 2] = 255, 255
    image = saved(tmp_path / "a.png", pixels)
    how = near_sighted_windows(window=(64, 64))
    (rows,) = predict_resized(image, (64, 64), how, NORMALISE, wanted=(), progress=lambda count: None)
    assert rows.labels.shape == (100, 80) and rows.probabilities is None
    assert set(rows.labels[:48].ravel()) == {0} and set(rows.labels[52:].ravel()) == {2}
