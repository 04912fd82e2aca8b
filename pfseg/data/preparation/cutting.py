"""Scenes cut into patches: decoding, padding, coding, writing and reading back.

Shapes: a scene's image (H, W, 3) uint8 RGB, its labels (H, W) uint8 in [0, K) or 255; a patch (h, w).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, IgnoreEntry, Scene, class_ids
from pfseg.data.decode import MaskReader, check_same_size, most_common, read_image
from pfseg.data.header import read_header
from pfseg.data.preparation.files import count_labels, write_file
from pfseg.data.preparation.layout import patch_name
from pfseg.data.preparation.png import encode_png
from pfseg.data.tiling import Window, padded, windows
from pfseg.errors import DataError

_SMALL = 1 << 25  # pixels of a scene whose image and mask are decoded at the same time
_SHOWN_COLORS = 3
_SIDES = ("top", "bottom", "left", "right")


class PatchRow(TypedDict):
    """What the journal and the index say about a patch; the last two only if it has a mask."""

    name: str  # of the image's file
    window: list[int]  # [y0, y1, x0, x1] in the scene
    border: list[str]  # the sides of the scene that the window touches
    pixels: NotRequired[dict[str, int]]  # of each class that occurs
    ignored: NotRequired[int]  # pixels without a class


class UnknownColors(TypedDict):
    """Colours of a mask that the class table lacks."""

    pixels: int
    colors: int
    most: list[str]  # the most frequent as RRGGBB


class SceneRecord(TypedDict):
    """What the journal says about a finished scene."""

    source: list[list[str | int]]  # path, bytes and time of change of its image and mask
    size: list[int]  # [H, W]
    unknown: UnknownColors | None
    patches: list[PatchRow]  # row by row


@dataclass(frozen=True)
class LoadedScene:
    """A scene in memory.

    Attributes:
        scene: what it was read from.
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8; None where the scene has no mask.
        unknown: number of pixels of each colour 0xRRGGBB that the class table lacks.
        windows: where it is cut.
    """

    scene: Scene
    image: np.ndarray
    labels: np.ndarray | None
    unknown: Counter[int]
    windows: list[Window]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + (0 if self.labels is None else self.labels.nbytes)


class Cutter:
    """Reads scenes and writes their patches.

    Masks are written as ids of the class table, so that the data set reads them back with the table it has.

    Args:
        classes: the class table.
        ignore: colours and ids in masks that mean "no class".
        size: (h, w) of the patches; None for each scene as a whole.
        stride: (rows, columns) from one patch to the next; None for the size.
        bands: see `pfseg.data.decode.read_image`.
        stretch: see there too.
        compression: level of `encode_png`, 0 to 3.
        verify: read back what was written.
    """

    def __init__(
        self,
        *,
        classes: Sequence[ClassInfo],
        ignore: Sequence[IgnoreEntry],
        size: Sequence[int] | None,
        stride: Sequence[int] | None,
        bands: Sequence[int] | None,
        stretch: Sequence[float] | None,
        compression: int,
        verify: bool,
    ) -> None:
        """Prepare the tables."""
        self.reader = MaskReader(classes, ignore)
        self.classes = tuple(classes)
        self.size, self.stride = size, stride
        self.bands, self.stretch = bands, stretch
        self.compression, self.verify = compression, verify
        self.codes = mask_codes(self.classes, ignore)

    def load(self, scene: Scene, pool: Executor) -> LoadedScene:
        """Read a scene: the mask first, of whose colours a third of the memory stays; of a small one both at once.

        Raises:
            DataError: image or mask is unreadable, or they differ in size.
        """
        labels, unknown = None, Counter[int]()
        if scene.mask is None:
            image = read_image(scene.image, self.bands, self.stretch)
        else:
            reading = pool.submit(self.reader.read_counted, scene.mask, str(scene.mask))
            if not (_is_small(scene.image) and _is_small(scene.mask)):
                reading.result()
            image = read_image(scene.image, self.bands, self.stretch)
            labels, unknown = reading.result()
            check_same_size(image, labels, scene.image, scene.mask)
        return LoadedScene(scene, image, labels, unknown, windows(image.shape[:2], self.size, self.stride))

    def patch_shape(self, window: Window) -> tuple[int, int]:
        """(h, w) of the patch of a window, padding included."""
        return window.shape if self.size is None else (self.size[0], self.size[1])

    def write_patch(self, loaded: LoadedScene, window: Window, files: Sequence[Path]) -> PatchRow:
        """Write one patch, padded at the bottom and right where the scene ends, to `files`: image and mask, if any.

        Raises:
            DataError: a pixel has no class and the class table no value for that, or what was read back differs.
            WriteError: the disk is full, or the file cannot be written for another reason.
        """
        name = patch_name(loaded.scene.name, window)
        shape = self.patch_shape(window)
        row: PatchRow = {"name": name, "window": list(window), "border": _border(window, loaded.shape)}
        if loaded.labels is not None:
            labels = padded(loaded.labels[window.slices], shape, [IGNORE])
            counts = count_labels(labels)
            self._write(files[1], self._coded(labels, counts, name))
            row["pixels"] = {info.name: int(n) for info, n in zip(self.classes, counts, strict=False) if n}
            row["ignored"] = int(counts[IGNORE])
        self._write(files[0], padded(loaded.image[window.slices], shape, [0, 0, 0]))
        return row

    def _coded(self, labels: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
        if counts[IGNORE] and self.codes.ignore is None:
            raise DataError(
                f"{name} has pixels without a class (padding, colours that are unknown or ignored), but 255 is a "
                "class here and no other value means that; add one to `ignore`, or leave the scenes whole "
                "(config: dataset.ignore, dataset.prepare.size)"
            )
        coded: np.ndarray = cv2.LUT(labels, self.codes.table)
        return coded

    def _write(self, path: Path, pixels: np.ndarray) -> None:
        data = encode_png(pixels, self.compression)
        write_file(path, data)
        if self.verify and path.read_bytes() != data:
            raise DataError(f"{path} holds other bytes than were written: check the disk")


class MaskCodes(NamedTuple):
    """How labels are written: the value of "no class" (None: there is none), and the values of all labels, (256,)."""

    ignore: int | None
    table: np.ndarray


def mask_codes(classes: Sequence[ClassInfo], ignore: Sequence[IgnoreEntry]) -> MaskCodes:
    """Values for masks that a data set with this class table and these ignored ids reads back as the same labels."""
    ids = class_ids(classes)
    unused = [IGNORE, *(entry for entry in ignore if isinstance(entry, int))]
    nothing = next((value for value in unused if value not in ids), None)
    table = np.zeros(256, dtype=np.uint16 if max(ids) > 255 else np.uint8)
    table[: len(ids)] = ids
    table[IGNORE] = nothing or 0
    return MaskCodes(nothing, table)


def unknown_colors(counts: Mapping[int, int]) -> UnknownColors | None:
    """Sum up the pixels of each colour that the class table lacks; None if there are none."""
    if not counts:
        return None
    most = [f"{color:06X}" for color in most_common(Counter(counts), _SHOWN_COLORS)]
    return {"pixels": sum(counts.values()), "colors": len(counts), "most": most}


def _is_small(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            header = read_header(file)
    except OSError:
        return False
    return header is not None and header.height * header.width <= _SMALL


def _border(window: Window, shape: tuple[int, int]) -> list[str]:
    touches = (window.y0 == 0, window.y1 == shape[0], window.x0 == 0, window.x1 == shape[1])
    return [side for side, touch in zip(_SIDES, touches, strict=True) if touch]
