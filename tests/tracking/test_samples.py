from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pfseg.tracking.samples import LARGEST, boundary_picture, edge_picture, read_maps, save_maps

GREEN, ORANGE, BLUE = (46, 160, 67), (255, 140, 0), (40, 110, 255)


def panel(height: int, width: int, split: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """The truth changes its class in the middle, the prediction at column `split`."""
    mask, pred = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    pred[:, split:] = 1
    return np.full((height, width, 3), (200, 100, 50), np.uint8), mask, pred, "tile"


def test_maps_come_back_as_they_were(tmp_path: Path):
    first, second = panel(32, 48, 10), panel(20, 20, 10)
    second[1][:4] = 255
    edge = np.arange(0, 256, dtype=np.uint8).reshape(16, 16).T
    rows = save_maps(tmp_path, 7, [first, second], [edge, None])
    samples = read_maps(tmp_path, rows)
    for sample, (image, mask, pred, name) in zip(samples, (first, second), strict=True):
        assert sample.name == name
        assert np.abs(sample.image.astype(int) - image).max() < 4  # a JPEG
        np.testing.assert_array_equal(sample.mask, mask)
        np.testing.assert_array_equal(sample.pred, pred)
    assert np.abs(samples[0].edge.astype(int) - edge).max() < 8  # a JPEG
    assert samples[1].edge is None
    (tmp_path / rows[0]["pred"]).unlink()
    assert len(read_maps(tmp_path, rows)) == 1


def test_image_and_truth_are_written_once(tmp_path: Path):
    (before,) = save_maps(tmp_path, 1, [panel(32, 32, 4)], [None])
    written = (tmp_path / before["mask"]).stat().st_mtime_ns
    (after,) = save_maps(tmp_path, 2, [panel(32, 32, 8)], [None])
    assert after["mask"] == before["mask"] and (tmp_path / after["mask"]).stat().st_mtime_ns == written
    assert after["pred"] != before["pred"]


def test_large_samples_are_scaled_down_and_keep_their_labels(tmp_path: Path):
    (row,) = save_maps(tmp_path, 1, [panel(100, 2 * LARGEST, 8)], [np.zeros((64, 64), np.uint8)])
    (sample,) = read_maps(tmp_path, [row])
    assert sample.mask.shape == sample.image.shape[:2] == (50, LARGEST) and sample.edge.shape == (32, 32)
    assert np.unique(sample.mask).tolist() == [0, 1]


def test_boundaries_are_coloured_by_what_was_found(tmp_path: Path):
    def colours(split: int) -> dict[tuple[int, ...], list[int]]:
        """Columns of each boundary colour."""
        (sample,) = read_maps(tmp_path, save_maps(tmp_path, split, [panel(8, 20, split)], [None]))
        row = boundary_picture(sample)[4]
        return {colour: np.flatnonzero((row == colour).all(axis=1)).tolist() for colour in (GREEN, ORANGE, BLUE)}

    assert colours(10) == {GREEN: [9, 10], ORANGE: [], BLUE: []}
    assert colours(4) == {GREEN: [], ORANGE: [9, 10], BLUE: [3, 4]}


def test_edges_stand_beside_their_label(tmp_path: Path):
    edge = np.full((8, 16), 77, np.uint8)
    (sample,) = read_maps(tmp_path, save_maps(tmp_path, 1, [panel(12, 20, 4)], [edge]))
    picture = edge_picture(sample, "class", 2)
    assert picture.shape == (8, 16 + 8 + 16, 3)
    assert np.abs(picture[:, :16].astype(int) - 77).max() < 3
    assert np.flatnonzero(picture[0, 24:, 0]).tolist() == [9, 10]
    assert cv2.imread(str(tmp_path / "samples" / "0_image.jpg")).shape == (12, 20, 3)
