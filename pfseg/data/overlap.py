"""Validation images that are trained on."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from pathlib import Path

from pfseg.data.base import SegmentationDataset


def find_overlap(train: SegmentationDataset, val: SegmentationDataset) -> str | None:
    """A warning if validation images are among the training images: files of the same stem and content."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in train.image_files():
        by_stem[path.stem].append(path)
    images = val.image_files()
    shared = [path for path in images if any(_same(path, other) for other in by_stem.get(path.stem, ()))]
    if not shared:
        return None
    return (
        f"{len(shared)} of the {len(images)} validation images are also in the training split, such as {shared[0]}: "
        "the validation score does not measure how the network does on images it has not seen (config: dataset.splits)"
    )


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second) or filecmp.cmp(first, second, shallow=False)  # compares sizes first
    except OSError:
        return False  # an unreadable file is reported where it is read
