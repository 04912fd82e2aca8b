from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.published import SHARED, labels, opened, palette, potsdam, prepared, vaihingen

from pfseg.data.archives.folders import SceneList
from pfseg.data.archives.isprs import POTSDAM, VAIHINGEN, find_potsdam, find_vaihingen
from pfseg.data.reader import ImageReader
from pfseg.errors import ConfigError, DataError

SIZES = ["dataset.prepare.size=40", "dataset.prepare.stride=20"]


def tiles(src: Path, **changes: Any) -> SceneList:
    return find_potsdam(src, **{"bands": "rgb", "eroded": False, "holdout": (), **changes})


def test_official_lists():
    assert [len(tiles) for tiles in (*POTSDAM.values(), *VAIHINGEN.values())] == [24, 14, 16, 17]
    for lists in (POTSDAM, VAIHINGEN):
        assert not set(lists["train"]) & set(lists["test"])


def test_whole_potsdam_archive(tmp_path: Path):
    src, out = tmp_path / "Potsdam archive", tmp_path / "out"
    potsdam(src, [*POTSDAM["train"], *POTSDAM["test"]])
    data = prepared("potsdam", src, out, *SIZES)
    counts = {split: len(opened(data, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 18 * 4, "val": 6 * 4, "test": 14 * 4}
    assert {path.name.split("_RGB_")[0] for path in (out / "val/images").iterdir()} == {
        f"top_potsdam_{tile}" for tile in ("2_12", "3_10", "4_11", "5_12", "6_8", "7_9")
    }
    sample = opened(data, "train").read(0)
    assert sample.name == "train/images/top_potsdam_2_10_RGB_0_40_0_40.png"
    np.testing.assert_array_equal(
        sample.image, ImageReader().read(src / "2_Ortho_RGB/top_potsdam_2_10_RGB.tif")[:40, :40]
    )
    np.testing.assert_array_equal(sample.mask, labels(60, 60, 0, 6)[:40, :40])


def test_whole_vaihingen_archive(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    vaihingen(src, [int(area) for area in (*VAIHINGEN["train"], *VAIHINGEN["test"])])
    data = prepared("vaihingen", src, out, *SIZES)
    counts = {split: len(opened(data, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 13 * 4, "val": 3 * 4, "test": 17 * 4}
    sample = opened(data, "train").read(0)
    assert sample.name == "train/images/top_mosaic_09cm_area11_0_40_0_40.png"
    np.testing.assert_array_equal(sample.mask, labels(60, 50, VAIHINGEN["train"].index("11"), 6)[:40, :40])


@pytest.mark.parametrize("dataset", ["potsdam", "vaihingen"])
def test_eroded_ground_truth_ignores_outlines(tmp_path: Path, dataset: str):
    src, out = tmp_path / "src", tmp_path / "out"
    potsdam(src, ["2_10"]) if dataset == "potsdam" else vaihingen(src, [1])
    data = prepared(dataset, src, out, *SIZES, "dataset.prepare.scenes.eroded=true")
    mask = opened(data, "train").read_mask(0)
    assert (mask[:3] == 255).all()
    assert (mask[3:] < 255).all()


def test_band_orders(tmp_path: Path):
    src = tmp_path / "src"
    potsdam(src, ["2_10"], folder="3_Ortho_IRRG", bands="IRRG")
    assert tiles(src, bands="irrg")[0].image.name == "top_potsdam_2_10_IRRG.tif"
    with pytest.raises(DataError, match=r"looked for 2_Ortho_RGB/top_potsdam_2_10_RGB.tif .*; found 3_Ortho_IRRG/, 5_"):
        tiles(src)
    potsdam(src, ["2_10"], folder="4_Ortho_RGBIR", bands="RGBIR")
    given = ["dataset.prepare.scenes.bands=rgbir", "dataset.bands=[3,0,1]"]
    data = prepared("potsdam", src, tmp_path / "out", *SIZES, *given)
    stored = ImageReader([3, 0, 1]).read(src / "4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif")
    patches = opened(data.model_copy(update={"bands": None}), "train")
    np.testing.assert_array_equal(patches.read(0).image, stored[:40, :40])
    with pytest.raises(ConfigError, match=r"bands=bgr: expected rgb \| irrg \| rgbir"):
        tiles(src, bands="bgr")
    with pytest.raises(ConfigError, match="Vaihingen has one order"):
        find_vaihingen(src, bands="rgb", eroded=False, holdout=())  # type: ignore[arg-type]


def test_missing_tiles_and_faults_are_told(tmp_path: Path):
    potsdam(tmp_path, ["2_10", "2_11", "2_13"])
    (tmp_path / "2_Ortho_RGB/top_potsdam_2_11_RGB.tif").unlink()
    (tmp_path / "5_Labels_all/top_potsdam_2_13_label.tif").unlink()
    (tmp_path / "2_Ortho_RGB/top_potsdam_9_99_RGB.tif").touch()
    scenes = tiles(tmp_path, holdout=["2_10", "7_12"])
    assert [(scene.name, scene.split) for scene in scenes] == [
        ("top_potsdam_2_10_RGB", "val"),
        ("top_potsdam_2_13_RGB", "test"),
    ]
    assert scenes[1].mask is None
    assert scenes.notes[0].startswith("0 of 22 train tiles found; missing: 2_11, 2_12, 3_10")
    assert scenes.notes[1] == "1 of 2 val tiles found; missing: 7_12"
    assert scenes.notes[3] == "left out, in none of the official lists: top_potsdam_9_99_RGB.tif"
    (fault,) = scenes.faults
    assert fault.endswith("top_potsdam_2_11_label.tif has no image")


@pytest.mark.parametrize("holdout", [["2_12", "6_8"], [212, 68]])  # YAML reads an unquoted 2_12 as 212
def test_holdout_tiles(tmp_path: Path, holdout: list[str | int]):
    potsdam(tmp_path, ["2_12", "6_8", "7_7"])
    splits = {scene.name.removeprefix("top_potsdam_"): scene.split for scene in tiles(tmp_path, holdout=holdout)}
    assert splits == {"2_12_RGB": "val", "6_8_RGB": "val", "7_7_RGB": "train"}
    with pytest.raises(ConfigError, match=r"holdout: 2_13 is no training tile; there are 2_10, .*scenes.holdout"):
        tiles(tmp_path, holdout=["2_13"])


def test_one_level_more_and_links_in_a_circle(tmp_path: Path):
    disk, src = tmp_path / "disk", tmp_path / "src"
    potsdam(disk, ["2_10"])
    src.mkdir()
    os.symlink(disk, src / "Potsdam")
    os.symlink(src, disk / "2_Ortho_RGB" / "again")
    (scene,) = tiles(src)
    assert scene.image == src / "Potsdam/2_Ortho_RGB/top_potsdam_2_10_RGB.tif"
    assert scene.mask == src / "Potsdam/5_Labels_all/top_potsdam_2_10_label.tif"


REAL = [
    (
        "potsdam",
        "top_potsdam_2_10_RGB_0_0_512_512",
        "2_Ortho_RGB/top_potsdam_2_10_RGB",
        "5_Labels_all/top_potsdam_2_10_label",
    ),
    ("vaihingen", "top_mosaic_09cm_area1_0_0_512_512", "top/top_mosaic_09cm_area1", "gts/top_mosaic_09cm_area1"),
]


@pytest.mark.shared_data("potsdam", "vaihingen")
@pytest.mark.parametrize(("dataset", "sample", "image", "mask"), REAL)
def test_patches_of_real_tiles_reassemble_to_them(tmp_path: Path, dataset: str, sample: str, image: str, mask: str):
    src = tmp_path / "src"
    for kind, name in (("images", image), ("masks", mask)):
        (src / name).parent.mkdir(parents=True)
        shutil.copyfile(SHARED / dataset / "train" / kind / f"{sample}.tif", src / f"{name}.tif")
    data = prepared(dataset, src, tmp_path / "out", "dataset.prepare.size=200", "dataset.prepare.stride=150")
    scene, truth = ImageReader().read(src / f"{image}.tif"), ImageReader().read(src / f"{mask}.tif")
    found, colors = np.full_like(scene, 77), np.full_like(truth, 77)
    table = palette(dataset)
    known = np.isin(truth.astype(int) @ [1, 256, 65536], table.astype(int) @ [1, 256, 65536])
    dataset_read = opened(data, "train")
    for index, (path, _) in enumerate(dataset_read.files):
        y0, y1, x0, x1 = map(int, path.stem.split("_")[-4:])
        part = dataset_read.read(index)
        found[y0:y1, x0:x1] = part.image
        colors[y0:y1, x0:x1] = table[np.where(part.mask == 255, 0, part.mask)]
        np.testing.assert_array_equal(part.mask == 255, ~known[y0:y1, x0:x1])
    np.testing.assert_array_equal(found, scene)
    np.testing.assert_array_equal(colors[known], truth[known])
