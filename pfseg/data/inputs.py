"""What a network is given: how its images are read, and what they held, for `index.json`, run folders, checkpoints.

A record has the keys
    bands, stretch  as of `pfseg.data.reader.ImageReader`, of the files that the images come from
    nodata          "black": what pixels without data become
    seen            what some of those files hold, see `survey`; None where code makes the images
and in run folders and checkpoints `mean` and `std` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pfseg.data.base import Note, SegmentationDataset
from pfseg.data.cache import stat_of
from pfseg.data.reader import Image, ImageReader, percentiles_of
from pfseg.data.sources import plain_kind
from pfseg.errors import DataError
from pfseg.files import parse_json

Record = dict[str, Any]
T = TypeVar("T")
INDEX = "index.json"  # of a preparation
_SURVEYED = 4  # files, the smallest of four times as many
_POOLED = 1 << 24  # values of a band that percentiles over a data set are taken from
_MEASURED = 200  # images that mean and deviation are taken from
_FAR = 3.0  # factor between the brightest values of training and of an image that is worth a warning


def make_record(reader: ImageReader, files: Sequence[Path]) -> Record:
    """Describe how files are read, and what they hold."""
    bands = None if reader.bands is None else list(reader.bands)
    return {"bands": bands, "stretch": reader.stretch, "nodata": "black", "seen": survey(files, reader)}


def survey(files: Sequence[Path], reader: ImageReader) -> dict[str, Any] | None:
    """What some files hold: `type`, number of `bands`, and the `bounds` [low, high] of 98 % of the values of each band.

    `bands` are those of the file, `bounds` of those that are read, or None for 8 bits. Files that can't be read are
    left out.
    """
    some = sorted(spread(files, 4 * _SURVEYED), key=lambda path: stat_of(path)[0])[:_SURVEYED]
    found: dict[tuple[str, int], list[Any]] = {}
    for path in some:
        with suppress(DataError):
            if kind := plain_kind(path):
                found.setdefault(kind, []).append(None)
                continue
            with ImageReader(reader.bands, reader.stretch).open(path) as image:
                found.setdefault(image.kind, []).append(image.bounds())
    if not found:
        return None
    (name, bands), every = max(found.items(), key=lambda item: len(item[1]))
    bounds = None if every[0] is None else np.stack([np.min(every, 0)[:, 0], np.max(every, 0)[:, 1]], 1).tolist()
    return {"type": name, "bands": bands, "bounds": bounds}


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def prepared_record(folder: Path) -> Record | None:
    """The record of the preparation that wrote a folder; None if none did, or one of an earlier version."""
    with suppress(OSError, ValueError, AttributeError):
        record: Record | None = parse_json((folder / INDEX).read_bytes()).get("input")
        return record
    return None


def patch_folder(path: Path) -> Path | None:
    """The folder of a preparation that wrote an image, if one did."""
    return next((folder for folder in list(path.absolute().parents)[:4] if (folder / INDEX).is_file()), None)


def patch_bands(folder: Path, bands: Sequence[int] | None) -> list[int] | None:
    """Where the `bands` of the files that patches in `folder` were cut from lie in the patches; None: as they are.

    Raises DataError if the patches lack one.
    """
    record = prepared_record(folder)
    kept = bands if record is None else record["bands"]
    if kept is not None and bands is not None and set(bands) <= set(kept):
        places = [list(kept).index(band) for band in bands]
        return None if places == [0, 1, 2] == [*range(len(kept))] else places
    if len(kept or "RGB") == len(bands or "RGB") == 3:
        return None
    theirs, ours = ("red, green, blue" if each is None else [*each] for each in (kept, bands))
    raise DataError(
        f"the patches in {folder} hold the bands {theirs} of the files that they were cut from, not {ours}: prepare "
        "them with dataset.bands, or take the files themselves"
    )


def pooled_range(
    files: Sequence[Path], bands: Sequence[int] | None, percents: Sequence[float], progress: Callable[[int, int], None]
) -> np.ndarray:
    """Percentiles over all values of each band of all files, (B, 2); files that can't be read are left out.

    `progress` is called with the files done and those in all.

    Raises:
        DataError: none can be read, or they differ in their number of bands.
    """
    side = max(16, min(1024, math.isqrt(_POOLED // max(1, len(files)))))
    pooled: list[list[np.ndarray]] = []
    fault: DataError | None = None
    for done, path in enumerate(files):
        progress(done, len(files))
        try:
            with ImageReader(bands, {"range": [0, 1]}).open(path) as image:
                pooled.append(image.values(side))
        except DataError as error:
            fault = error
    progress(len(files), len(files))
    if len({len(values) for values in pooled}) != 1:
        raise fault or DataError("the images differ in their number of bands: name them (config: dataset.bands)")
    return np.array([percentiles_of(np.concatenate(values), percents) for values in zip(*pooled, strict=True)])


def band_statistics(dataset: SegmentationDataset, progress: Callable[[int, int], None]) -> np.ndarray:
    """Mean and standard deviation of each band of images scaled to 0..1: (2, C), without pixels that are black.

    At most 200 images, evenly spread, are read; `progress` is called with those done and those in all. Raises DataError
    if none can be read.
    """
    some = spread(range(len(dataset)), _MEASURED)
    sums: list[np.ndarray] = []
    for done, index in enumerate(some):
        progress(done, len(some))
        with suppress(DataError):
            image = dataset.read(index).image
            values = image[::2, ::2].reshape(-1, image.shape[2]) / 255
            values = values[values.any(axis=1)]
            sums.append(np.stack([np.full(values.shape[1], len(values)), values.sum(0), (values**2).sum(0)]))
    progress(len(some), len(some))
    if not sums or not (total := np.sum(sums, axis=0))[0].all():
        raise DataError("no image has pixels to measure its bands by; set dataset.mean and dataset.std")
    mean = total[1] / total[0]
    return np.asarray(np.stack([mean, np.sqrt(np.maximum(total[2] / total[0] - mean**2, 1e-6))])).round(4)


def misfit(image: Image, record: Record) -> Note | None:
    """A note if a file differs from those that a network was trained on, with the numbers."""
    seen = record["seen"]
    if seen is None:
        return None
    kind, count = image.kind
    what = f"{image.path} has {count} bands of {kind}, the network was trained on files of "
    what += f"{seen['bands']} bands of {seen['type']}"
    if kind != seen["type"]:
        return Note(f"{what}: its values may mean something else", "misfit-type")
    if record["bands"] is not None and count != seen["bands"]:
        return Note(f"{what}: bands={record['bands']} may be others here", "misfit-bands")
    per_image = isinstance(record["stretch"], Sequence)
    if per_image or seen["bounds"] is None or (bounds := image.bounds()) is None:
        return None
    here, there = (max(high for _, high in pairs) for pairs in (bounds, seen["bounds"]))
    if there > 0 and not there / _FAR <= here <= there * _FAR:
        return Note(
            f"{image.path}: 99 % of its values are at most {here:.6g}, those of the images that the network was "
            f"trained on at most {there:.6g}: it may be scaled otherwise",
            "misfit-range",
        )
    return None
