"""What masks hold: how often each class occurs, and what is odd about that.

Shapes: mask (H, W), integers; any value but 0 to K - 1 has no class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, SegmentationDataset, class_ids
from pfseg.data.inputs import INDEX, spread
from pfseg.errors import DataError
from pfseg.files import parse_json

_MASKS = 200  # are read of a data set without an index, or as many as _SECONDS allow
_SECONDS = 5.0
_IGNORED = 0.05  # share of all pixels from which on it is worth a warning


class Census:
    """Counts of the labels of masks."""

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self.classes = classes
        self.pixels = np.zeros(len(classes), np.int64)  # of each class
        self.images = np.zeros(len(classes), np.int64)  # with any pixel of it
        self.ignored = self.masks = 0  # pixels without a class, and masks in all

    def add(self, mask: np.ndarray) -> None:
        """Count a mask."""
        counts = np.bincount(mask.ravel(), minlength=256)[: len(self.classes)]
        self._add(counts, mask.size - int(counts.sum()))

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Count a patch with a mask by its row of `index.json`."""
        self._add(np.array([row["pixels"].get(info.name, 0) for info in self.classes]), row["ignored"])

    def _add(self, counts: np.ndarray, ignored: int) -> None:
        self.pixels += counts
        self.images += counts > 0
        self.ignored += ignored
        self.masks += 1

    def shares(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Share of each class in the labelled pixels (K,), in the masks (K,), and of all pixels those without class."""
        labelled = int(self.pixels.sum())
        ignored = self.ignored / max(1, labelled + self.ignored)
        return self.pixels / max(1, labelled), self.images / max(1, self.masks), ignored

    def class_weights(self, rule: str) -> np.ndarray:
        """Weights (K,) of the classes, of mean 1 over those that occur; 1 for the others.

        `median_frequency`: the inverse of a class's share of the masks that it is in (Eigen and Fergus, ICCV 2015).
        `effective_number`: the inverse of (1 - b^n) / (1 - b) for n pixels (Cui et al., CVPR 2019), b being 1 - 1 / N
        for N pixels in a class on average.
        """
        weights, found = np.ones(len(self.classes)), self.pixels > 0
        if not found.any():
            return weights
        pixels = self.pixels[found].astype(np.float64)
        if rule == "median_frequency":
            inverse = self.images[found] / pixels
        else:
            inverse = 1 / -np.expm1(-pixels / pixels.mean())  # b^n is exp(-n / N) but for 1 / N
        weights[found] = inverse / inverse.mean()
        return weights

    def warnings(self) -> list[str]:
        """What is odd: classes that never occur, and more than 5 % of the pixels without a class."""
        share, found = self.shares()[2], []
        absent = [info.name for info, count in zip(self.classes, self.pixels, strict=True) if not count]
        if absent:
            found.append(
                f"{', '.join(absent)}: no pixel of {'this class' if len(absent) == 1 else 'these classes'} in "
                f"{self.masks:,} masks, so that nothing can be learnt about it (config: dataset.classes)"
            )
        if share > _IGNORED:
            hint = "" if IGNORE in class_ids(self.classes) or not absent else (
                f"; if {IGNORE} in the masks stands for {absent[0]}, add `id: {IGNORE}` to that class"
            )  # fmt: skip
            found.append(f"{100 * share:.3g} % of the pixels have no class and are ignored{hint}")
        return found


def count_all_masks(
    dataset: SegmentationDataset, root: Path | None, split: str, progress: Callable[[int, int], None]
) -> Census:
    """Count every mask of a split; `progress` is called with the masks read and those in all."""
    if root is not None and (census := indexed_census(dataset.classes, root, split)):
        return census
    census = Census(dataset.classes)
    for index in range(len(dataset)):
        progress(index, len(dataset))
        with suppress(DataError):  # told where it is trained on
            census.add(dataset.read_mask(index))
    return census


def count_masks(dataset: SegmentationDataset, root: Path | None, split: str) -> Census:
    """Count the masks of a split: all of them by the `index.json` of its `root`, or else some, evenly spread."""
    if root is not None and (census := indexed_census(dataset.classes, root, split)):
        return census
    census, start = Census(dataset.classes), time.monotonic()
    for index in spread(range(len(dataset)), _MASKS):
        with suppress(DataError):  # told where it is trained on
            census.add(dataset.read_mask(index))
        if time.monotonic() - start > _SECONDS:
            break
    return census


def indexed_census(classes: Sequence[ClassInfo], root: Path, split: str) -> Census | None:
    """The counts that a preparation left; None if there are none, or of other classes."""
    census = Census(classes)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        index = parse_json((root / INDEX).read_bytes())
        if [row["name"] for row in index["classes"]] == [info.name for info in classes]:
            for row in index["splits"][split]["patches"]:
                if "pixels" in row:
                    census.add_row(row)
    return census if census.masks else None
