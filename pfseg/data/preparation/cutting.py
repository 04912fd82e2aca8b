"""Scenes cut into patches: decoding, padding, coding, writing and reading back.

Shapes: a scene's image (H, W, C) uint8, its labels (H, W) uint8 in [0, K) or 255; a patch (h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, IgnoreEntry, Scene, class_ids
from pfseg.data.masks import MaskReader, most_common
from pfseg.data.preparation.files import Stamp, count_labels, encode, stamp, stamp_of, suffix_of, write_file
from pfseg.data.preparation.layout import patch_name
from pfseg.data.reader import ImageReader, Stretch, check_same_size
from pfseg.data.sources import shape_of
from pfseg.data.tiling import Window, padded, windows
from pfseg.errors import DataError

_SMALL = 1 << 25  # pixels of a scene whose image and mask are decoded at the same time
_SIDES = ("top", "bottom", "left", "right")


class PatchRow(TypedDict):
    """What the journal and the index say about a patch; the last two only if it has a mask."""

    name: str  # of the image's file
    window: list[int]  # [y0, y1, x0, x1] in the scene
    border: list[str]  # the sides of the scene that the window touches
    files: list[Stamp]  # its image and mask, if any, as they were written
    pixels: NotRequired[dict[str, int]]  # of each class that occurs
    ignored: NotRequired[int]  # pixels without a class


class UnknownColors(TypedDict):
    """How many pixels and colours of a mask the class table lacks."""

    pixels: int
    colors: int
    most: list[str]  # the most frequent as RRGGBB


class SceneRecord(TypedDict):
    """What the journal says about a finished scene."""

    source: list[list[str | int]]  # path, bytes and time of change of its image and mask
    checksums: list[str]  # of both
    size: list[int]  # [H, W]
    unknown: UnknownColors | None
    patches: list[PatchRow]  # row by row


@dataclass(frozen=True)
class LoadedScene:
    """A scene in memory."""

    scene: Scene
    image: np.ndarray  # (H, W, C) uint8
    labels: np.ndarray | None  # (H, W) uint8; None where the scene has no mask
    checksums: list[str]  # of the files of both
    unknown: UnknownColors | None
    windows: list[Window]  # where it is cut

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + (0 if self.labels is None else self.labels.nbytes)


@dataclass(kw_only=True)
class Cutter:
    """Reads scenes and writes their patches.

    Masks are written as ids of the class table, so that the data set reads them back with the table it has. Pixels
    without a class get `ignore_value`; None: the table has no value for that.
    """

    classes: Sequence[ClassInfo]
    ignore: Sequence[IgnoreEntry]  # colours and ids in masks that mean "no class"
    size: Sequence[int] | None  # (h, w) of the patches; None for each scene as a whole
    stride: Sequence[int] | None  # (rows, columns) from one patch to the next; None for the size
    bands: Sequence[int] | None  # see `pfseg.data.reader`
    stretch: Stretch | None  # see there too
    compression: int  # level of `encode`, 0 to 3
    verify: bool  # read back what was written

    def __post_init__(self) -> None:
        """Prepare the tables."""
        self.reader = MaskReader(self.classes, self.ignore)
        self.image_reader = ImageReader(self.bands, self.stretch)
        ids = class_ids(self.classes)
        unused = [IGNORE, *(entry for entry in self.ignore if isinstance(entry, int))]
        self.ignore_value = next((value for value in unused if value not in ids), None)
        self._table = np.zeros(256, dtype=np.uint16 if max(ids) > 255 else np.uint8)  # written value of each label
        self._table[: len(ids)] = ids
        self._table[IGNORE] = self.ignore_value or 0

    def load(self, scene: Scene, pool: Executor) -> LoadedScene:
        """Read a scene: the mask first, of whose colours a third of the memory stays; of a small one both at once."""
        labels: np.ndarray | None = None
        unknown: UnknownColors | None = None
        if scene.mask is None:
            image = self.image_reader.read(scene.image)
        else:
            reading = pool.submit(self.reader.read_counted, scene.mask, str(scene.mask))
            if not (_is_small(scene.image) and _is_small(scene.mask)):
                reading.result()
            image = self.image_reader.read(scene.image, shape_of(scene.mask))
            labels, counts = reading.result()
            check_same_size(image, labels, scene.image, scene.mask)
            if counts:
                unknown = {"pixels": counts.total(), "colors": len(counts), "most": most_common(counts)}
        checksums = [stamp_of(path)[1] for path in (scene.image, scene.mask) if path is not None]
        return LoadedScene(scene, image, labels, checksums, unknown, windows(image.shape[:2], self.size, self.stride))

    def patch_name(self, scene: Scene, window: Window) -> str:
        """File name of the image of a patch."""
        return patch_name(scene.name, window, suffix_of(self.image_reader.channels))

    def write_patch(self, loaded: LoadedScene, window: Window, files: Sequence[Path]) -> PatchRow:
        """Write one patch, padded at the bottom and right where the scene ends, to `files`: image and mask, if any.

        Raises:
            DataError: a pixel has no class and the class table no value for that, or what was read back differs.
            WriteError: the disk is full, or the file cannot be written for another reason.
        """
        name, shape = self.patch_name(loaded.scene, window), self.size or window.shape
        border = _border(window, loaded.image.shape)
        image = padded(loaded.image[window.slices], shape, [0] * loaded.image.shape[2])
        row: PatchRow = {"name": name, "window": list(window), "border": border, "files": []}
        if loaded.labels is not None:
            labels = padded(loaded.labels[window.slices], shape, [IGNORE])
            counts = count_labels(labels)
            row["files"].append(self._write(files[1], self._coded(labels, counts, name)))
            row["pixels"] = {info.name: int(n) for info, n in zip(self.classes, counts, strict=False) if n}
            row["ignored"] = int(counts[IGNORE])
        row["files"].insert(0, self._write(files[0], image))
        return row

    def _coded(self, labels: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
        if counts[IGNORE] and self.ignore_value is None:
            raise DataError(
                f"{name} has pixels without a class (padding, colours that are unknown or ignored), but 255 is a "
                "class here and no other value means that; add one to `ignore`, or leave the scenes whole "
                "(config: dataset.ignore, dataset.prepare.size)"
            )
        coded: np.ndarray = cv2.LUT(labels, self._table)
        return coded

    def _write(self, path: Path, pixels: np.ndarray) -> Stamp:
        data = encode(pixels, self.compression)
        write_file(path, data)
        if self.verify and path.read_bytes() != data:
            raise DataError(f"{path} holds other bytes than were written: check the disk")
        return stamp([data])


def _is_small(path: Path) -> bool:
    height, width = shape_of(path)
    return height * width <= _SMALL


def _border(window: Window, shape: tuple[int, ...]) -> list[str]:
    touches = (window.y0 == 0, window.y1 == shape[0], window.x0 == 0, window.x1 == shape[1])
    return [side for side, touch in zip(_SIDES, touches, strict=True) if touch]
