"""The page of one evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pfseg.data.base import ClassInfo
from pfseg.metrics.confusion import scores
from pfseg.reporting.evaluation import to_html
from pfseg.tracking.records import plain

CLASSES = [ClassInfo("land", (1, 2, 3)), ClassInfo("<b>Straße</b>", (200, 30, 40)), ClassInfo("never", (9, 9, 9))]
NAMES = [info.name for info in CLASSES]


def part(count: int, boundary: bool = False) -> dict[str, Any]:
    confusion = np.array([[90, 10, 0], [20, 80, 0], [0, 0, 0]]) * count
    result = scores(confusion, NAMES, ["land"])
    if boundary:
        result |= {"boundary_IoU": 5.0} | {f"boundary_IoU/{name}": 5.0 for name in NAMES}
    return {"images": count, **result, "classes": NAMES, "confusion": confusion.tolist()}


def results(**changes: Any) -> dict[str, Any]:
    settings = {
        "checkpoint": "best.safetensors", "step": 7, "split": "test", "score": "patches", "overlap": 0, "scales": [1],
        "flips": "none", "exclude": [], "eval_size": "whole", "contrast": "own",
    }  # fmt: skip
    return plain(settings | part(5) | changes)


def test_scores_classes_and_confusion_are_on_the_page(tmp_path: Path):
    html = to_html(tmp_path, results(), CLASSES)
    assert [title for title in re.findall("<h2>(.*?)</h2>", html)] == ["Scores", "Classes", "Confusion"]
    assert "best.safetensors, step 7; 5 images; whole; written " in html
    assert "&lt;b&gt;Straße&lt;/b&gt; taken for land: 100 pixels" in html and "<b>Straße" not in html
    assert html.count(">-</td>") >= 4, "a class that never occurs has no scores"
    assert "leave out" not in html


def test_patches_and_scenes_each_have_their_sections(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "scenes"):
        folder.mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / "worst.png"), np.zeros((4, 4, 3), np.uint8))
    changes = {"score": "both", "exclude": ["land"], "eval_size": [64, 32], "flips": "hv", "overlap": 0.5}
    html = to_html(tmp_path, results(**changes, **part(5, boundary=True), scenes=part(2)), CLASSES)
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles[:5] == [
        "Scores",
        *(f"{what} of patches" for what in ("Classes", "Boundaries", "Confusion")),
        "Patches",
    ]
    assert titles[4:] == ["Patches", "Classes of scenes", "Confusion of scenes", "Scenes"]
    assert "5 patches; windows of 64x32 px, overlap 0.5, mirrored both ways;" in html
    assert "Means over classes leave out: land. OA, fwIoU and kappa count all pixels." in html
    assert html.count('<tr class="excluded">') == 3 and html.count("<img ") == 2
    assert html.count("data:image/webp;base64,") == 2


@pytest.mark.parametrize(
    ("changes", "words"), [({"contrast": 40.0}, "contrast 40"), ({"scales": [0.5, 1]}, "scales 0.5, 1")]
)
def test_views_are_named(changes: dict[str, Any], words: str, tmp_path: Path):
    assert f"whole, {words}" in to_html(tmp_path, results(**changes), CLASSES)
