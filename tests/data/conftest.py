from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.fakes import COLORS, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The common cache folder of the test."""
    monkeypatch.setenv("PFSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """Root with six images in train and two in val; in image n the first n + 1 rows are class 0, the rest class 1."""
    root = tmp_path / "städte 2"
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            mask = np.ones((40, 48), dtype=np.uint8)
            mask[: number + 1] = 0
            image = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            write(root / split / "images" / f"tile {number}.jpg", image)
            write(root / split / "masks" / f"tile {number}.png", COLORS[mask])
    return root
