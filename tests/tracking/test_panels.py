from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pfseg.data.base import ClassInfo
from pfseg.errors import WriteError
from pfseg.metrics.calibration import calibration
from pfseg.tracking.panels import save_confusion, save_panels, save_preview, save_reliability

CLASSES = [ClassInfo("road", (200, 30, 40)), ClassInfo("Gebäude", (10, 120, 220))]


def sample(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    image = np.full((height, width, 3), (1, 2, 250), np.uint8)
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    return image, truth, np.ones_like(truth), "area/tile_1"


def count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == color).all(axis=2).sum())


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_a_small_image_is_enlarged_and_shows_class_colours(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "step_000001.png"
    save_panels(path, [sample(64, 64)], CLASSES, height=128)
    picture = read(path)
    side = 128 - 2  # within the cell's outline
    assert count(picture, (1, 2, 250)) == side * side
    assert count(picture, CLASSES[0].color) == side * (side // 2) + 14 * 14  # ground truth and the legend
    assert count(picture, CLASSES[1].color) == side * (side // 2) + side * side + 14 * 14


def test_rows_of_different_sizes_stay_within_the_limit(tmp_path: Path) -> None:
    save_panels(tmp_path / "p.png", [sample(900, 1200), sample(40, 600), sample(700, 200)], CLASSES, height=100)
    height, width, _ = read(tmp_path / "p.png").shape
    assert height < 3 * (100 + 40) + 100
    assert width == 3 * 150 + 2 * 10 + 2 * 16


def test_pixels_without_a_class_are_hatched(tmp_path: Path) -> None:
    image, truth, pred, name = sample(64, 64)
    save_panels(tmp_path / "a.png", [(image, truth, pred, name)], CLASSES)
    truth[:32] = 255
    save_panels(tmp_path / "b.png", [(image, truth, pred, name)], CLASSES)
    hatch = (72, 72, 72)
    assert count(read(tmp_path / "a.png"), hatch) == 0
    assert count(read(tmp_path / "b.png"), hatch) > 20_000
    truth[:] = 255
    save_panels(tmp_path / "c.png", [(image, truth, pred, name)], CLASSES)


def test_long_names_and_many_classes_are_wrapped(tmp_path: Path) -> None:
    many = [ClassInfo(f"{'long ' * 12}{index}", (index, 9, 9)) for index in range(24)]
    save_panels(tmp_path / "p.png", [(*sample(64, 64)[:3], "folder/" * 40 + "tile")], many, height=128)
    picture = read(tmp_path / "p.png")
    assert picture.shape[1] == 3 * 128 + 2 * 10 + 2 * 16
    assert all(count(picture, (index, 9, 9)) >= 14 * 14 for index in range(24))


def test_an_unwritable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"p\.png can't be written"):
        save_panels(tmp_path / "file" / "p.png", [sample(64, 64)], CLASSES)


def test_a_confusion_matrix_in_percent_of_its_rows(tmp_path: Path) -> None:
    confusion = np.array([[0, 8, 0], [3, 0, 3], [0, 0, 0]])
    save_confusion(tmp_path / "c.png", confusion, ["road", "Gebäude", "a class that never occurs, with a long name"])
    picture = read(tmp_path / "c.png")
    cell = 43 * 43  # within its lines
    assert count(picture, (238, 240, 242)) == 3 * cell, "a class without pixels has no shares"
    assert 0.8 * cell < count(picture, (11, 98, 176)) < cell, "100 % in full colour, but for the number"
    half = tuple(round((255 + part) / 2) for part in (11, 98, 176))
    assert 1.5 * cell < count(picture, half) < 2 * cell


@pytest.mark.parametrize("count_", [1, 16])
def test_confusion_matrices_of_any_size(count_: int, tmp_path: Path) -> None:
    save_confusion(tmp_path / "c.png", np.eye(count_, dtype=np.int64), [f"class {n}" for n in range(count_)])
    height, width, _ = read(tmp_path / "c.png").shape
    assert min(height, width) > count_ * 44


def test_names_of_any_length(tmp_path):
    """CORINE's have 86 letters; small images leave panels of little width."""
    name = "Land principally occupied by agriculture, with significant areas of natural vegetation"
    classes = [ClassInfo(name, (200, 0, 0)), ClassInfo("x" * 400, (0, 200, 0)), ClassInfo("", (0, 0, 9))]
    labels = np.arange(400).reshape(20, 20) % 3
    image = np.zeros((20, 20, 3), np.uint8)
    save_panels(tmp_path / "a.png", [(image, labels, labels, "a/" * 99 + "b.png")], classes)
    save_preview(tmp_path / "b.png", [(image, labels, labels > 0, "a/" * 99 + "b.png")], classes)
    save_confusion(tmp_path / "c.png", np.eye(3, dtype=int), [info.name for info in classes])
    assert len(list(tmp_path.iterdir())) == 3


def test_reliability_shows_the_accuracy_of_each_bin(tmp_path: Path) -> None:
    """A bin that is always right has a bar as high as the chart, one that never is has none."""
    logits = np.log(np.array([[0.95, 0.05], [0.55, 0.45]], np.float32))
    right, wrong = (calibration(logits, np.array(labels), 1.0) for labels in ([0, 0], [1, 1]))
    save_reliability(tmp_path / "r.png", right, wrong)
    picture = read(tmp_path / "r.png")
    strong = (picture == (11, 98, 176)).all(axis=2)
    left, half = strong[:, : picture.shape[1] // 2], strong[:, picture.shape[1] // 2 :]
    assert left.sum() > 2 * 18 * 290 and not half.any()
