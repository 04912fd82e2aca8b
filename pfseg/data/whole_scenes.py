"""Training straight from whole scenes: windows of them, as `pfseg prepare` would cut them, read when they are needed.

A scene is decoded once into an uncompressed file of the cache, (H, W, C + 1) uint8: bands and label. That file
is mapped into memory, so that a window costs its own pixels only.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, ClassRow, IgnoreEntry, Sample, Scene, SegmentationDataset, parse_classes
from pfseg.data.cache import cache_folder, key_of, stat_of
from pfseg.data.masks import MaskReader
from pfseg.data.reader import ImageReader, Stretch, check_same_size
from pfseg.data.sources import shape_of
from pfseg.data.tiling import padded, windows
from pfseg.errors import DataError, JobError
from pfseg.files import lock, replacing

_VERSION = 2  # of how images are read: decoded scenes of another one are not used
_BAND_BYTES = 1 << 24  # a scene is written in bands of about this size


class SceneDataset(SegmentationDataset):
    """Windows of whole scenes: the same samples as the patches that `pfseg prepare` writes.

    Of the `scenes` those of the `split` are taken, and cut as `pfseg.data.tiling.windows` says; smaller ones are padded
    at the bottom and right, the image with 0, the mask with 255. The other keywords are those of `FolderDataset`.

    Raises:
        ConfigError: a keyword that does not fit.
        DataError: no scene of the split, or one that cannot be used.
    """

    def __init__(
        self,
        *,
        split: str,
        scenes: Iterable[Scene],
        classes: Iterable[ClassRow | ClassInfo],
        size: Sequence[int] | None,
        stride: Sequence[int] | None,
        ignore: Sequence[IgnoreEntry],
        bands: Sequence[int] | None,
        stretch: Stretch | None,
        on_error: str,
    ) -> None:
        self.classes, self.on_error, self.warnings = parse_classes(classes), on_error, []
        self.reader = MaskReader(self.classes, ignore)
        self.image_reader = ImageReader(bands, stretch)
        self.size, self.stride = size, stride
        self.folder = cache_folder() / "scenes"
        self.scenes: dict[Scene, tuple[int, int]] = {}
        for scene in scenes:
            if scene.split == split:
                try:
                    self.scenes[scene] = _shape(scene)
                except DataError as error:
                    self.leave_out(error)
        self.samples = [
            (scene, window) for scene, shape in self.scenes.items() for window in windows(shape, size, stride)
        ]
        if not self.samples:
            raise DataError(f"no scene of the split {split!r} can be used (config: dataset.root, dataset.prepare)")

    def __len__(self) -> int:
        """Number of windows of all scenes."""
        return len(self.samples)

    def read(self, index: int) -> Sample:
        """Read a window; raises DataError, or JobError if the cache can't be written."""
        scene, window = self.samples[index]
        pixels = self._pixels(index)
        name = f"{scene.key}_{'_'.join(map(str, window))}"
        image = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB) if pixels.shape[2] == 4 else pixels[..., :-1].copy()
        return Sample(image, np.ascontiguousarray(pixels[..., -1]), name)

    def read_mask(self, index: int) -> np.ndarray:
        """Read the mask of a window."""
        return np.ascontiguousarray(self._pixels(index)[..., -1])

    def image_files(self) -> list[Path]:
        """Image files of the scenes."""
        return [scene.image for scene in self.scenes]

    def mask_key(self) -> object:
        """Sizes and times of the scenes, and what turns them into masks of windows."""
        return [self._key(scene) for scene in self.scenes], self.size, self.stride

    def describe(self) -> str:
        """What is cut from what, and how much room the decoded scenes take."""
        there = sum(self._path(scene).is_file() for scene in self.scenes)
        gib = sum((self.image_reader.channels + 1) * height * width for height, width in self.scenes.values()) / 2**30
        return (
            f"{len(self)} windows of {len(self.scenes)} scenes, each decoded once into {self.folder} "
            f"({there} are there; {gib:.2f} GiB in all; PFSEG_CACHE=<folder> puts them elsewhere)"
        )

    def _pixels(self, index: int) -> np.ndarray:
        """The window of a sample, padded: its bands and label."""
        scene, window = self.samples[index]
        fill = [0] * self.image_reader.channels + [IGNORE]
        return padded(self._decoded(scene)[window.slices], self.size or window.shape, fill)

    def _key(self, scene: Scene) -> str:
        assert scene.mask is not None
        files = [[str(path.absolute()), *stat_of(path)] for path in (scene.image, scene.mask)]
        return key_of(files, self.reader.key(), self.image_reader.bands, self.image_reader.stretch, _VERSION)

    def _path(self, scene: Scene) -> Path:
        return self.folder / f"{self._key(scene)}.npy"

    def _decoded(self, scene: Scene) -> np.ndarray:
        """The decoded scene (H, W, C + 1) uint8, mapped into memory for reading."""
        path, shape = self._path(scene), (*self.scenes[scene], self.image_reader.channels + 1)
        if (pixels := _open(path, shape)) is not None:
            return pixels
        try:
            with lock(path):
                if (pixels := _open(path, shape)) is None:  # no other process was quicker
                    image, mask = self._decode(scene)
                    with replacing(path) as new:
                        _write(new, image, mask)
                    pixels = _open(path, shape)
        except OSError as error:
            disk = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
            raise JobError(
                f"the decoded scene {scene.name} ({math.prod(shape) >> 20} MiB) cannot be written to "
                f"{self.folder}: {error.strerror or error} ({shutil.disk_usage(disk).free >> 20} MiB free); free some "
                "space or set PFSEG_CACHE=<folder on another disk>"
            ) from error
        if pixels is None:
            raise DataError(f"{path} changed while it was written; start again")
        return pixels

    def _decode(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        assert scene.mask is not None
        mask, warning = self.reader.read(scene.mask, str(scene.mask))
        if warning:
            self.warnings.append(warning)
        image = self.image_reader.read(scene.image, mask.shape)
        self.warnings += self.image_reader.pop_notes()
        check_same_size(image, mask, scene.image, scene.mask)
        return image, mask


def _shape(scene: Scene) -> tuple[int, int]:
    """(H, W) of a scene: that of its mask, since its image may have to be turned."""
    if scene.mask is None:
        raise DataError(f"scene {scene.image} has no mask; add it, or leave it out with dataset.on_error=skip")
    shape = shape_of(scene.mask)
    if sorted(shape_of(scene.image)) != sorted(shape):
        return shape_of(scene.image)  # its reading will name the fault
    return shape


def _open(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Map a decoded scene; None if it is not there, or damaged."""
    try:
        pixels: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write(path: Path, image: np.ndarray, mask: np.ndarray) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (*mask.shape, image.shape[2] + 1)}
    rows = max(1, _BAND_BYTES // ((image.shape[2] + 1) * mask.shape[1]))
    with open(path, "wb") as file:  # written, not mapped: a full disk then is an error and no fatal signal
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for top in range(0, len(mask), rows):
            band = slice(top, top + rows)
            file.write(np.dstack((image[band], mask[band])).data)
