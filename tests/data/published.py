"""Tiny archives with the layout and the names of the real ones, and their preparation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.fakes import write

from pfseg.build_data import build_dataset
from pfseg.commands.prepare import run
from pfseg.config.check import checked
from pfseg.config.commands import PrepareJob
from pfseg.config.compose import compose
from pfseg.config.data_settings import FolderData
from pfseg.data.base import parse_classes
from pfseg.data.folder import FolderDataset
from pfseg.errors import ConfigError, DataError, WriteError

TABLE = ["dataset.classes=[{name: roof, color: '3C1098'}, {name: road, color: [110, 193, 228]}]"]
SIZES = ["dataset.prepare.size=32", "dataset.prepare.stride=20"]
SCENES = ("train/P0000", "train/P0002", "val/P0003", "test/P0006")  # of `isaid`
SHARED = Path(__file__).parents[3] / "shared" / "data"


def configured(dataset: str, src: Path, out: Path, *overrides: str) -> PrepareJob:
    given = [f"dataset={dataset}", f"src='{src}'", f"out='{out}'", "workers=2", *overrides]
    return checked(compose("prepare", given), PrepareJob)


def prepared(dataset: str, src: Path, out: Path, *overrides: str) -> FolderData:
    """Prepare in this process; returns the settings of the data set, to be read from `out`."""
    config = configured(dataset, src, out, *overrides)
    run(config)
    return config.dataset.model_copy(update={"root": str(out)})


def opened(data: FolderData, split: str) -> FolderDataset:
    found = build_dataset(data, split)
    assert isinstance(found, FolderDataset)
    return found


def palette(dataset: str) -> np.ndarray:
    """Class colours, (K, 3) uint8."""
    rows = compose("prepare", [f"dataset={dataset}"])["dataset"]["classes"]
    return np.array([info.color for info in parse_classes([dict(row) for row in rows])], np.uint8)


def pixels(height: int, width: int, seed: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def labels(height: int, width: int, seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (height, width), np.uint8)


def isaid(root: Path, *, masks_in: str = "images", size: tuple[int, int] = (70, 50)) -> None:
    """Two scenes in train, one in val, one in test without mask, as the development kit unpacks them."""
    colors = palette("isaid")
    for seed, (split, name) in enumerate([("train", "P0000"), ("train", "P0002"), ("val", "P0003"), ("test", "P0006")]):
        write(root / split / "images" / f"{name}.png", pixels(*size, seed))
        if split != "test":
            mask = colors[labels(*size, seed, 16)]
            write(root / split / masks_in / f"{name}_instance_color_RGB.png", mask)
            write(root / split / masks_in / f"{name}_instance_id_RGB.png", mask)


def potsdam(root: Path, tiles: list[str], *, folder: str = "2_Ortho_RGB", bands: str = "RGB") -> None:
    colors = palette("potsdam")
    for seed, tile in enumerate(tiles):
        channels = 4 if bands == "RGBIR" else 3
        write(root / folder / f"top_potsdam_{tile}_{bands}.tif", pixels(60, 60, seed, channels))
        truth = colors[labels(60, 60, seed, 6)]
        write(root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", truth)
        truth[:3] = 0
        write(root / "5_Labels_all_noBoundary" / f"top_potsdam_{tile}_label_noBoundary.tif", truth)


def vaihingen(root: Path, areas: list[int]) -> None:
    colors = palette("vaihingen")
    name = "ISPRS_semantic_labeling_Vaihingen"
    for seed, area in enumerate(areas):
        write(root / name / "top" / f"top_mosaic_09cm_area{area}.tif", pixels(60, 50, seed))
        truth = colors[labels(60, 50, seed, 6)]
        write(root / f"{name}_ground_truth_COMPLETE" / f"top_mosaic_09cm_area{area}.tif", truth)
        truth[:3] = 0
        eroded = root / f"{name}_ground_truth_eroded_COMPLETE"
        write(eroded / f"top_mosaic_09cm_area{area}_noBoundary.tif", truth)


def index_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "index.json").read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "journal.jsonl"
    }


def refused(dataset: str, src: Path, out: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError, WriteError)) as caught:
        prepared(dataset, src, out, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
