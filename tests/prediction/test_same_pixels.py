"""The network sees the same pixels everywhere: preparation, training, preview and prediction against a slow reference.

Files of every kind are drawn at random: types, numbers of bands, layouts, compressions, and what their tags say. The
reference works on GDAL's raw bands, one band and rule after the other.
"""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import rasterio
from data.building import folder_dataset, train_loader
from data.fakes import CLASSES, tif, write
from numpy_networks import sliding
from rasterio.enums import ColorInterp

from pfseg.data.base import Scene, parse_classes
from pfseg.data.normalise import Normalise
from pfseg.data.preparation.cutting import Cutter
from pfseg.data.reader import ImageReader
from pfseg.prediction.rows import predict_rows

SIZE = (70, 85)
TYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")
COMPRESSIONS = ("none", "deflate", "lzw", "zstd", "lerc", "jpeg")
KINDS = ("plain", "cmyk", "tags", "alpha", "infrared", "mask", "nodata", "nan", "palette", "bits")
RANGE = (100, 900)  # what becomes black and white where the type doesn't say it


class Case(NamedTuple):
    dtype: str
    count: int
    interleave: str
    compress: str
    kind: str
    tiled: bool
    stretch: str  # range, percentiles or none


def fits(case: Case) -> bool:
    """Whether there are such files."""
    wide = case.dtype != "uint8"
    return not (
        (case.compress == "jpeg" and (wide or case.kind in ("palette", "bits", "nodata") or case.count == 8))
        or (case.compress == "lerc" and case.kind in ("palette", "bits"))
        or (case.compress == "jpeg" and case.kind in ("alpha", "infrared", "cmyk", "tags"))
        or (case.kind == "nan" and not case.dtype.startswith("float"))
        or (case.kind in ("palette", "bits") and (wide or case.count > 1))
        or (case.kind == "cmyk" and (wide or case.count != 4))
        or (case.kind in ("alpha", "infrared") and (case.count != 4 or case.dtype not in ("uint8", "uint16")))
        or (case.kind == "tags" and case.count < 3)
        or (case.stretch == "none" and case.dtype not in ("uint8", "uint16"))
    )


CASES = [
    case
    for case in itertools.starmap(
        Case,
        itertools.product(
            TYPES, (1, 3, 4, 8), ("pixel", "band"), COMPRESSIONS, KINDS, (False, True), ("range", "percentiles", "none")
        ),
    )
    if fits(case)
]


def make(path: Path, case: Case, rng: np.random.Generator) -> None:
    """Write the file of a case."""
    smooth = cv2.resize(rng.uniform(0, 1, (8, 8, case.count)), SIZE[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    planes = smooth.reshape(*SIZE, case.count).transpose(2, 0, 1)
    top = 255 if case.dtype == "uint8" else 1000
    bands = (planes * top).astype(case.dtype)
    hole = np.zeros(SIZE, bool)
    hole[10:30, 40:] = True
    profile: dict[str, Any] = {"interleave": case.interleave, "compress": case.compress}
    profile |= {"tiled": True, "blockxsize": 32, "blockysize": 32} if case.tiled else {}
    profile |= {"photometric": "minisblack"} if case.kind != "palette" else {"photometric": "palette"}
    kinds: list[ColorInterp] = []
    if case.kind == "cmyk":
        profile["photometric"] = "cmyk"
    elif case.kind == "tags":
        order = rng.permutation(case.count)[:3]
        kinds = [ColorInterp.undefined] * case.count
        for band, color in zip(order, (ColorInterp.red, ColorInterp.green, ColorInterp.blue), strict=True):
            kinds[band] = color
    elif case.kind in ("alpha", "infrared"):
        profile |= {"photometric": "rgb", "alpha": "yes"}
        if case.kind == "alpha":
            bands[3] = np.where(hole, 0, np.iinfo(case.dtype).max)
    elif case.kind == "nodata":
        profile["nodata"] = 7 if case.dtype.startswith("u") else -9999
        bands[:, hole] = profile["nodata"]
        bands[0, 50] = profile["nodata"]  # of one band alone
    elif case.kind == "nan":
        bands[:, hole], bands[0, 50] = np.nan, np.inf
    elif case.kind == "palette":
        bands %= 20
        profile["palette"] = {value: tuple(rng.integers(0, 256, 3).tolist()) for value in range(20)}
    elif case.kind == "bits":
        profile["nbits"] = int(rng.choice([1, 2, 4]))
        bands >>= 8 - profile["nbits"]
    tif(path, bands, kinds, mask=~hole if case.kind == "mask" else None, **profile)


def reference(path: Path, case: Case, bands: list[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, C) uint8 and where they hold data (H, W), by GDAL's raw bands."""
    name = f"GTIFF_RAW:{path}" if case.kind == "cmyk" else str(path)
    with warnings.catch_warnings(action="ignore"), rasterio.open(name) as file:
        raw, kinds = file.read(), [kind.name for kind in file.colorinterp]
        valid = file.read_masks(1) > 0 if case.kind == "mask" else np.ones(file.shape, bool)
        nodata, colors = file.nodata, file.colormap(1) if case.kind == "palette" else {}
        bits = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    if colors:
        raw = np.array([[[colors[value][band] for value in row] for row in raw[0]] for band in range(3)], np.uint8)
        kinds = ["red", "green", "blue"]
    if case.kind == "bits":
        raw = raw * (255 // ((1 << int(bits)) - 1))
    chosen = bands
    if chosen is None:
        tagged = all(color in kinds for color in ("red", "green", "blue"))
        chosen = [kinds.index(color) for color in ("red", "green", "blue")] if tagged else [*range(len(raw))]
    if case.kind == "alpha" and 3 not in chosen:
        valid &= raw[3] > 0
    holds = []
    for band in chosen:
        hold = np.isfinite(raw[band])
        holds.append(hold & (raw[band] != nodata) if nodata is not None else hold)
    valid = valid & np.any(holds, axis=0)
    planes = []
    for band, hold in zip(chosen, holds, strict=True):
        plane = raw[band].astype(np.float64)
        if raw.dtype == np.uint8:
            planes.append(raw[band])
        elif case.stretch == "none":
            planes.append((raw[band] // 256).astype(np.uint8))
        else:
            low, high = RANGE if case.stretch == "range" else np.percentile(plane[hold & valid], (2, 98))
            scaled = (plane - low) * 255 / (high - low)
            planes.append(np.nan_to_num(np.clip(np.round(scaled), 0, 255)).astype(np.uint8))
    return np.stack(planes * 3 if bands is None and len(planes) == 1 else planes, axis=2), valid


def fed(image: Any) -> np.ndarray:
    """What prediction feeds a network, as pixels (H, W, C)."""
    seen: list[np.ndarray] = []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return batch

    how = sliding(network, num_classes=image.channels, window=SIZE, overlap=0.0, stride=1)
    mean, std = statistics(image.channels)
    normalise = Normalise(mean, std)
    for _ in predict_rows(image, how, normalise, wanted=(), progress=lambda _: None, black=True):
        pass
    (batch,) = seen
    return np.clip(np.rint((batch[0].transpose(1, 2, 0) * std + mean) * 255), 0, 255).astype(np.uint8)


def statistics(channels: int) -> tuple[list[float], list[float]]:
    """A mean and a deviation for each band."""
    return np.linspace(0.3, 0.5, channels).tolist(), np.linspace(0.2, 0.3, channels).tolist()


def check(case: Case, folder: Path, rng: np.random.Generator) -> None:
    """Compare all ways of one case."""
    path, mask = folder / "train/images/a.tif", folder / "train/masks/a.png"
    make(path, case, rng)
    write(mask, np.zeros(SIZE, np.uint8))
    named = case.count in (4, 8) and case.kind not in ("tags", "alpha", "infrared")
    bands = [int(band) for band in rng.permutation(case.count)[: rng.choice([1, 2, 3, 4, 8])]] if named else None
    stretch = {"range": {"range": RANGE}, "percentiles": (2, 98), "none": None}[case.stretch]
    expected, valid = reference(path, case, bands)
    expected = np.where(valid[..., None], expected, 0)

    dataset = folder_dataset(folder, bands=bands, stretch=stretch)
    found = {"data set": dataset.read(0).image}
    mean, std = statistics(expected.shape[2])
    loader = train_loader(dataset, mean=mean, std=std, crop_size=SIZE, batch_size=1)
    (batch,) = loader.epoch(0)
    shown = batch["image"][0].transpose(1, 2, 0) * std + mean  # as the preview does
    found["loader, preview"] = np.clip(np.rint(255 * shown), 0, 255).astype(np.uint8)
    options = {"size": None, "stride": None, "compression": 1, "verify": True}
    cutter = Cutter(classes=parse_classes(CLASSES), ignore=(), bands=bands, stretch=stretch, **options)
    with ThreadPoolExecutor(1) as pool:
        loaded = cutter.load(Scene("a", "train", path, mask), pool)
        patch = folder / cutter.patch_name(loaded.scene, loaded.windows[0])
        cutter.write_patch(loaded, loaded.windows[0], [patch, folder / "mask.png"])
    found["preparation"] = ImageReader(bands and range(len(bands))).read(patch)
    with ImageReader(bands, stretch).open(path) as image:
        found["prediction"] = fed(image)
        given, holds = image.read(0, SIZE[0])
    np.testing.assert_array_equal(valid, True if holds is None else holds, err_msg=f"{case}: valid pixels")
    found["rows"] = given
    for way, pixels in found.items():
        np.testing.assert_array_equal(pixels[valid], expected[valid], err_msg=f"{case}: {way}")
        np.testing.assert_array_equal(pixels[~valid], 0, err_msg=f"{case}: {way}, without data")


def test_every_kind_is_drawn():
    assert {case.kind for case in CASES} == set(KINDS) and {case.dtype for case in CASES} == set(TYPES)
    assert {case.compress for case in CASES} == set(COMPRESSIONS) and {case.count for case in CASES} == {1, 3, 4, 8}


@pytest.mark.parametrize("part", range(2))
def test_the_same_pixels_everywhere(part: int, tmp_path: Path):
    draw(part, 25, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2, 10))
def test_the_same_pixels_everywhere_of_many_files(part: int, tmp_path: Path):
    draw(part, 50, tmp_path)


def draw(part: int, count: int, folder: Path) -> None:
    """Check cases at random, of each kind as many."""
    rng = np.random.default_rng(part)
    for number in range(count):
        cases = [case for case in CASES if case.kind == KINDS[number % len(KINDS)]]
        check(cases[int(rng.integers(len(cases)))], folder / str(number), rng)
