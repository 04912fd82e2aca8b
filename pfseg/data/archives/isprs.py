"""ISPRS 2D semantic labelling, Potsdam and Vaihingen: tiles of the archives by their official names.

Rottensteiner et al., "The ISPRS benchmark on urban object classification and 3D building reconstruction", 2012.
Files are known by their names, so that one level of folders more or less does no harm. Classes:
conf/dataset/potsdam.yaml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pfseg.data.archives.folders import SceneList, nothing_found, some
from pfseg.data.base import Scene
from pfseg.errors import ConfigError

POTSDAM = {
    "train": (
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
    ).split(),
    "test": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split(),
}
VAIHINGEN = {
    "train": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split(),
    "test": "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38".split(),
}
_BANDS = {"rgb": "2_Ortho_RGB", "irrg": "3_Ortho_IRRG", "rgbir": "4_Ortho_RGBIR"}
_DEPTH = 4  # levels of folders below `src`
_LABEL_FOLDER = re.compile(r"ground_?truth|(^|_)(labels?|gts?)(_|$)", re.IGNORECASE)


def find_potsdam(src: Path, *, bands: str, eroded: bool, holdout: Sequence[str | int]) -> SceneList:
    """Find the tiles of Potsdam in the official lists by split, and note missing ones.

    Args:
        src: folder with `2_Ortho_RGB/top_potsdam_2_10_RGB.tif` and `5_Labels_all/top_potsdam_2_10_label.tif`.
        bands: `rgb`, `irrg` or `rgbir`: which images.
        eroded: take the ground truth without the pixels along outlines, `..._label_noBoundary.tif`.
        holdout: training tiles such as `2_12` that become the split `val`.

    Raises:
        ConfigError: unknown `bands`, or a tile of `holdout` that is not a training tile.
        DataError: no tile at all.
    """
    if bands not in _BANDS:
        raise ConfigError(f"bands={bands}: expected {' | '.join(_BANDS)} (config: dataset.prepare.scenes.bands)")
    files = list(_files(src))
    label = "label_noBoundary" if eroded else "label"
    images = _by_tile(files, rf"top_potsdam_(\d+_\d+)_{bands}\.tif")
    masks = _by_tile(files, rf"top_potsdam_(\d+_\d+)_{label}\.tif")
    looked_for = f"{_BANDS[bands]}/top_potsdam_2_10_{bands.upper()}.tif and 5_Labels_all/top_potsdam_2_10_{label}.tif"
    if scenes := _pair(POTSDAM, images, masks, holdout):
        return scenes
    raise nothing_found(src, "Potsdam", looked_for)


def find_vaihingen(src: Path, *, bands: None, eroded: bool, holdout: Sequence[str | int]) -> SceneList:
    """Find the areas of Vaihingen, as `find_potsdam` does.

    The folder `src` holds `top/top_mosaic_09cm_area1.tif` and a file of this name in a folder named as ground truth;
    `bands` must be null, as the archive has one order: infrared, red and green.

    Raises:
        ConfigError: `bands` is not null, or an area of `holdout` is not a training area.
        DataError: no area at all.
    """
    if bands is not None:
        raise ConfigError(
            f"bands={bands}: Vaihingen has one order, infrared, red, green: leave it null "
            "(config: dataset.prepare.scenes.bands)"
        )
    files = {path: any(map(_LABEL_FOLDER.search, path.relative_to(src).parent.parts)) for path in _files(src)}
    end = "_noBoundary" if eroded else ""
    images = _by_tile((path for path in files if not files[path]), r"top_mosaic_09cm_area(\d+)\.tif")
    masks = _by_tile((path for path in files if files[path]), rf"top_mosaic_09cm_area(\d+){end}\.tif")
    truth = f"ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE/top_mosaic_09cm_area1{end}.tif"
    if scenes := _pair(VAIHINGEN, images, masks, holdout):
        return scenes
    raise nothing_found(src, "Vaihingen", f"top/top_mosaic_09cm_area1.tif and {truth}")


def _pair(
    lists: Mapping[str, Sequence[str]],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    holdout: Sequence[str | int],
) -> SceneList:
    held_out = _held_out(holdout, lists["train"])
    train = [tile for tile in lists["train"] if tile not in held_out]
    scenes = SceneList()
    for split, tiles in {"train": train, "val": held_out, "test": lists["test"]}.items():
        there = [tile for tile in tiles if tile in images]
        scenes += [Scene(images[tile].stem, split, images[tile], masks.get(tile)) for tile in there]
        if missing := [tile for tile in tiles if tile not in images]:
            scenes.notes.append(f"{len(there)} of {len(tiles)} {split} tiles found; missing: {', '.join(missing)}")
        scenes.faults += [f"mask {masks[tile]} has no image" for tile in missing if tile in masks]
    if others := sorted(set(images) - {*lists["train"], *lists["test"]}):
        scenes.notes.append(f"left out, in none of the official lists: {some(images[tile].name for tile in others)}")
    return scenes


def _held_out(holdout: Sequence[str | int], train: Sequence[str]) -> list[str]:
    """Tiles of `holdout` as the lists spell them: YAML reads an unquoted 2_12 as the number 212."""
    known = {tile.replace("_", ""): tile for tile in train}
    wanted = {str(tile).replace("_", ""): tile for tile in holdout}
    for key, tile in wanted.items():
        if key not in known:
            raise ConfigError(
                f"holdout: {tile} is no training tile; there are {', '.join(train)} "
                "(config: dataset.prepare.scenes.holdout)"
            )
    return [tile for key, tile in known.items() if key in wanted]


def _files(src: Path) -> Iterator[Path]:
    """TIFF files below `src` in a fixed order; links are followed, each folder is read once."""
    seen = set()
    for folder, folders, names in os.walk(src, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or len(Path(folder).relative_to(src).parts) >= _DEPTH:
            folders.clear()
        if real in seen:
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.lower().endswith(".tif"))


def _by_tile(files: Iterable[Path], pattern: str) -> dict[str, Path]:
    """The first file of each tile whose whole name fits the pattern."""
    tiles: dict[str, Path] = {}
    for path in files:
        if match := re.fullmatch(pattern, path.name, re.IGNORECASE):
            tiles.setdefault(match[1], path)
    return tiles
