"""Scenes cut into patches: decoding, padding, coding, writing and reading back.

Shapes: a scene's image (H, W, 3) uint8 RGB, its labels (H, W) uint8 in [0, K) or 255; a patch (h, w).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, Scene, class_ids
from pfseg.data.decode import MaskReader, check_same_size, most_common, read_image
from pfseg.data.header import read_header
from pfseg.data.preparation.files import count_labels, write_file
from pfseg.data.preparation.png import encode_png
from pfseg.data.tiling import Window, windows
from pfseg.errors import DataError

_SMALL = 1 << 25  # pixels of a scene whose image and mask are decoded at the same time
_SHOWN_COLORS = 3
_SIDES = ("top", "bottom", "left", "right")


class Target(NamedTuple):
    """Where the patches of a split go: folders of the images and of the masks."""

    images: Path
    masks: Path


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
        mask_suffix: what the stems of masks have after those of their images.
        bands: see `pfseg.data.decode.read_image`.
        stretch: see there too.
        compression: level of `encode_png`, 0 to 3.
        verify: read back what was written.
    """

    def __init__(
        self,
        *,
        classes: Sequence[ClassInfo],
        ignore: Sequence[Any] = (),
        size: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        mask_suffix: str = "",
        bands: Sequence[int] | None = None,
        stretch: Sequence[float] | None = None,
        compression: int = 2,
        verify: bool = True,
    ) -> None:
        """Prepare the tables."""
        self.reader = MaskReader(classes, ignore)
        self.classes = tuple(classes)
        self.size, self.stride = size, stride or size
        self.mask_suffix, self.bands, self.stretch = mask_suffix, bands, stretch
        self.verify = verify
        self.compression = compression
        self.codes = mask_codes(self.classes, ignore)

    def load(self, scene: Scene, pool: Executor) -> LoadedScene:
        """Read a scene: the mask first, of whose colours a third of the memory stays; of a small one both at once.

        Raises:
            DataError: image or mask is unreadable, or they differ in size.
        """
        labels, unknown = None, Counter[int]()
        if scene.mask is None:
            image = read_image(scene.image, self.bands, self.stretch)
        elif _is_small(scene.image) and _is_small(scene.mask):
            reading = pool.submit(self.reader.read_counted, scene.mask, str(scene.mask))
            try:
                image = read_image(scene.image, self.bands, self.stretch)
            finally:
                fault = reading.exception()
            if fault is not None:
                raise fault
            labels, unknown = reading.result()
        else:
            labels, unknown = self.reader.read_counted(scene.mask, str(scene.mask))
            image = read_image(scene.image, self.bands, self.stretch)
        if labels is not None:
            assert scene.mask is not None
            check_same_size(image, labels, scene.image, scene.mask)
        shape = (image.shape[0], image.shape[1])
        return LoadedScene(scene, image, labels, unknown, self.windows(shape))

    def windows(self, shape: tuple[int, int]) -> list[Window]:
        """Where a scene of this (H, W) is cut."""
        if self.size is None:
            return [Window(0, shape[0], 0, shape[1])]
        assert self.stride is not None
        return windows(shape, (self.size[0], self.size[1]), (self.stride[0], self.stride[1]))

    def patch_shape(self, window: Window) -> tuple[int, int]:
        """(h, w) of the patch of a window, padding included."""
        return (window.y1 - window.y0, window.x1 - window.x0) if self.size is None else (self.size[0], self.size[1])

    def write_patch(self, loaded: LoadedScene, window: Window, target: Target) -> dict[str, Any]:
        """Write one patch, padded at the bottom and right where the scene ends.

        Returns:
            Its row of the index: `name`, `window`, `border` and, with a mask, `pixels` by class and `ignored`.

        Raises:
            DataError: a pixel has no class and the class table no value for that, or what was read back differs.
            WriteError: the disk is full, or the file cannot be written for another reason.
        """
        name = patch_name(loaded.scene.name, window)
        shape = self.patch_shape(window)
        row: dict[str, Any] = {"name": name, "window": list(window), "border": _border(window, loaded.shape)}
        if loaded.labels is not None:
            labels = _padded(loaded.labels[window.slices], shape, IGNORE)
            counts = count_labels(labels)
            self._write(target.masks / mask_name(name, self.mask_suffix), self._coded(labels, counts, name))
            row["pixels"] = {info.name: int(n) for info, n in zip(self.classes, counts, strict=False) if n}
            row["ignored"] = int(counts[IGNORE])
        self._write(target.images / name, _padded(loaded.image[window.slices], shape, 0))
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
    """How labels are written: the value of each class, that of "no class" (None: there is none), and all as a table."""

    ids: list[int]
    ignore: int | None
    table: np.ndarray


def mask_codes(classes: Sequence[ClassInfo], ignore: Sequence[Any]) -> MaskCodes:
    """Values for masks that a data set with this class table and these ignored ids reads back as the same labels."""
    ids = class_ids(classes)
    unused = [IGNORE, *(entry for entry in ignore if isinstance(entry, int))]
    nothing = next((value for value in unused if value not in ids), None)
    table = np.zeros(256, dtype=np.uint16 if max(ids) > 255 else np.uint8)
    table[: len(ids)] = ids
    table[IGNORE] = nothing or 0
    return MaskCodes(ids, nothing, table)


def patch_name(scene: str, window: Window) -> str:
    """File name of a patch: the scene and its rows and columns there."""
    return f"{scene}_{'_'.join(map(str, window))}.png"


def mask_name(name: str, mask_suffix: str) -> str:
    """File name of a patch's mask."""
    return f"{name.removesuffix('.png')}{mask_suffix}.png"


def unknown_colors(counts: Mapping[int, int]) -> dict[str, Any] | None:
    """Colours that the class table lacks, for the report: pixels and colours in all, and the most frequent."""
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


def _padded(pixels: np.ndarray, shape: tuple[int, int], value: int) -> np.ndarray:
    down, right = shape[0] - pixels.shape[0], shape[1] - pixels.shape[1]
    if not down and not right:
        return pixels
    return cv2.copyMakeBorder(pixels, 0, down, 0, right, cv2.BORDER_CONSTANT, value=[value] * 3)


def _border(window: Window, shape: tuple[int, int]) -> list[str]:
    touches = (window.y0 == 0, window.y1 == shape[0], window.x0 == 0, window.x1 == shape[1])
    return [side for side, touch in zip(_SIDES, touches, strict=True) if touch]
