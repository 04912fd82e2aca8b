"""Reading image and mask files, and turning what masks hold into labels."""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, IgnoreEntry, class_ids, parse_color
from pfseg.data.header import Header, header_of
from pfseg.errors import ConfigError, DataError

_UNKNOWN = 254
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # BigTIFF has the "+"
_PERCENTILE_PIXELS = 1 << 20  # so many are looked at, in a grid
_BAND_PIXELS = 1 << 18  # are converted at a time, which fits a processor's cache
_LARGE = 1 << 26  # bytes of a file from which on it is not read into memory as a whole
_AGAIN = "copy it again, or leave damaged files out with dataset.on_error=skip"


def read_image(path: Path, bands: Sequence[int] | None = None, stretch: Sequence[float] | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, contiguous, as it is stored, whatever its EXIF orientation.

    Args:
        path: the file.
        bands: channels of the file, counted from 0, that become red, green and blue; None takes the first three, or
            repeats grey, and drops an alpha channel.
        stretch: percentiles [low, high] of each channel that become 0 and 255 in images of more than 8 bits; None
            maps the full range of 16 bits. Images of 8 bits stay as they are.

    Raises:
        DataError: missing, empty, truncated or no image; fewer channels than `bands` asks for, more than four without
            `bands`, or values that are no whole numbers of 8 or 16 bits without `stretch`.
    """
    pixels = _choose(read_channels(path), bands, path)
    if pixels.dtype != np.uint8:
        pixels = _to_8_bits(pixels, stretch, path)
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else np.ascontiguousarray(pixels)


def even_contrast(image: np.ndarray, deviation: float | None) -> np.ndarray:
    """Bring the standard deviation of an image (H, W, 3) uint8 to `deviation` grey levels around its own mean.

    What is dark stays dark, but hazy images and brilliant ones come to look alike. The factor is from 0.5 to 2, so that
    an image of nothing but sand or sea is not blown up to noise. All channels together have one mean and one deviation.
    """
    return image if deviation is None else cv2.LUT(image, contrast_table(image, deviation))


def contrast_table(values: np.ndarray, deviation: float) -> np.ndarray:
    """What `even_contrast` makes of each grey level (256,) uint8, from the uint8 `values` of an image in any shape."""
    if not values.size:
        return np.arange(256, dtype=np.uint8)
    mean, own = (float(part[0, 0]) for part in cv2.meanStdDev(values.reshape(-1, 1)))
    factor = min(max(deviation / max(own, 1e-6), 0.5), 2.0)
    return ((np.arange(256) - mean) * factor + mean).round().clip(0, 255).astype(np.uint8)


def read_channels(path: Path) -> np.ndarray:
    """Channels of a file as it is stored, colours in the order RGB or RGBA: (H, W) or (H, W, C); raises DataError."""
    data = _read_bytes(path)
    tiff = data[:4] in _TIFF
    try:
        pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
    except DataError:
        if tiff:
            return _read_by_rasterio(path)
        raise
    if tiff and _is_misread(pixels, header_of(path)):
        return _read_by_rasterio(path)
    if pixels.ndim == 3:  # OpenCV's order is turned in place: a second copy of a large scene may not fit in memory
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        rows = max(1, _BAND_PIXELS // pixels.shape[1])
        for top in range(0, len(pixels), rows):
            pixels[top : top + rows] = cv2.cvtColor(pixels[top : top + rows], code)
    return pixels


def _is_misread(pixels: np.ndarray, header: Header | None) -> bool:
    """Whether OpenCV left out channels of a TIFF, or took those of 16 bits that lie one after another for pixels."""
    if header is None or header.channels == 1:
        return False
    return pixels.ndim == 2 or pixels.shape[2] < header.channels or (header.planar and pixels.dtype != np.uint8)


def _read_by_rasterio(path: Path) -> np.ndarray:
    try:
        import rasterio
    except ImportError as error:
        raise DataError(
            f"{path} is a TIFF that OpenCV cannot decode in full; rasterio reads more kinds: pip install 'pfseg[geo]' "
            f"(if it is damaged, {_AGAIN})"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"), rasterio.open(path) as file:
            return np.moveaxis(file.read(), 0, 2)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be decoded: {error}; {_AGAIN}") from error


def _choose(pixels: np.ndarray, bands: Sequence[int] | None, path: Path) -> np.ndarray:
    """The three channels to show, or grey without its channel axis."""
    count = 1 if pixels.ndim == 2 else pixels.shape[2]
    if bands is not None:
        if max(bands) >= count:
            raise DataError(
                f"{path} has {count} {'channel' if count == 1 else 'channels'}, but bands={list(bands)} asks for "
                f"channel {max(bands)}, counted from 0 (config: dataset.bands)"
            )
        return pixels.reshape(*pixels.shape[:2], count)[..., list(bands)]
    if count > 4:
        raise DataError(
            f"{path} has {count} channels; say which are red, green and blue, such as bands=[2,1,0] "
            "(config: dataset.bands)"
        )
    if count <= 2:
        return pixels.reshape(*pixels.shape[:2], count)[..., 0]
    return pixels[..., :3]


def _to_8_bits(pixels: np.ndarray, stretch: Sequence[float] | None, path: Path) -> np.ndarray:
    if stretch is None:
        if pixels.dtype == np.uint16:
            return (pixels >> 8).astype(np.uint8)
        raise DataError(
            f"{path} has values of {pixels.dtype}; expected 8 or 16 bits without sign, or percentiles that become "
            "black and white, such as stretch=[2,98] (config: dataset.stretch)"
        )
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _PERCENTILE_PIXELS))
    some = pixels[::step, ::step].astype(np.float64)
    low, high = np.nanpercentile(some, stretch, axis=(0, 1)) if np.isfinite(some).any() else (0.0, 1.0)
    scaled = (pixels - low) * (255 / np.maximum(high - low, 1e-12))
    return np.asarray(np.nan_to_num(scaled.round().clip(0, 255)), dtype=np.uint8)


def check_same_size(image: np.ndarray, mask: np.ndarray, image_name: Path | str, mask_name: Path | str) -> None:
    """Raise DataError if an image (H, W, 3) and its mask (H, W) differ in size."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise DataError(
            f"{image_name} has {width}x{height} px but its mask {mask_name} {mask_width}x{mask_height}; "
            "both must have the same size"
        )


class MaskReader:
    """Reads masks of one class table by a table look-up.

    Raises:
        ConfigError: an entry of `ignore` is a class's own colour or id.
    """

    def __init__(self, classes: Sequence[ClassInfo], ignore: Sequence[IgnoreEntry] = ()) -> None:
        self.classes = tuple(classes)
        self.ids = {identity: label for label, identity in enumerate(class_ids(classes))}
        self.colors = {info.color: label for label, info in enumerate(classes)}
        for entry in ignore:
            if isinstance(entry, int):
                label = self.ids.setdefault(entry, IGNORE)
            else:
                label = self.colors.setdefault(parse_color(entry, where="config: dataset.ignore"), IGNORE)
            if label != IGNORE:
                name = self.classes[label].name
                raise ConfigError(f"{entry!r} of `ignore` is class {name}; drop either (config: dataset.ignore)")
        self.ids.setdefault(IGNORE, IGNORE)

    def key(self) -> object:
        """What the labels depend on besides the file, as JSON can hold it."""
        return sorted(self.ids.items()), sorted(self.colors.items())

    def read(self, path: Path, name: str) -> tuple[np.ndarray, str | None]:
        """Read one mask, which messages call `name`: single-channel ids, a palette PNG or RGB colours.

        Returns:
            (H, W) uint8 labels or 255, and a warning if colours outside the class table became 255.

        Raises:
            DataError: unreadable, or an id outside the class table.
        """
        mask, unknown = self.read_counted(path, name)
        if not unknown:
            return mask, None
        share, some = 100 * unknown.total() / mask.size, ", ".join(most_common(unknown))
        return mask, (
            f"{name}: {share:.3g} % of its pixels have colours outside the class table "
            f"({len(unknown)} in all, most often {some}) and are ignored (config: dataset.classes, dataset.ignore)"
        )

    def read_counted(self, path: Path, name: str) -> tuple[np.ndarray, Counter[int]]:
        """Read one mask as `read` does, and count the pixels of each colour 0xRRGGBB that the class table lacks."""
        data = _read_bytes(path)
        pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if pixels.ndim == 2:
            step = _grey_step(data)
            return self._from_ids(pixels // step if step > 1 else pixels, name), Counter()
        if pixels.dtype != np.uint8:
            raise DataError(f"{name} has colours of {pixels.dtype}; expected 8 bits per channel: convert the masks")
        return self._from_colors(pixels)

    def _from_ids(self, pixels: np.ndarray, name: str) -> np.ndarray:
        if pixels.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{name} has values of {pixels.dtype}; expected 8 or 16 bits without sign")
        table = np.full(np.iinfo(pixels.dtype).max + 1, _UNKNOWN, dtype=np.uint8)
        for identity, label in self.ids.items():
            if identity < len(table):
                table[identity] = label
        mask: np.ndarray = cv2.LUT(pixels, table) if pixels.dtype == np.uint8 else table[pixels]
        unknown = mask == _UNKNOWN
        if unknown.any():
            value = int(pixels[unknown].min())
            known = ", ".join(
                f"{identity} {self.classes[label].name if label != IGNORE else 'ignore'}"
                for identity, label in sorted(self.ids.items())
            )
            raise DataError(
                f"{name} has the value {value} (values outside the class table: {100 * unknown.mean():.3g} % of its "
                f"pixels); the table has {known}; add a class with `id: {value}` or list it under `ignore` "
                "(config: dataset.classes, dataset.ignore)"
            )
        return mask

    def _from_colors(self, pixels: np.ndarray) -> tuple[np.ndarray, Counter[int]]:
        mask = np.empty(pixels.shape[:2], dtype=np.uint8)
        unknown: Counter[int] = Counter()
        rows = max(1, _BAND_PIXELS // pixels.shape[1])  # what lies between colours and labels takes 20 bytes a pixel
        for top in range(0, len(pixels), rows):
            band, labels = pixels[top : top + rows], mask[top : top + rows]
            if band.shape[2] == 3:
                band = cv2.cvtColor(band, cv2.COLOR_BGR2BGRA)
            # B, G, R, A in memory are one little-endian number whose low 24 bits are 0xRRGGBB.
            codes = np.ascontiguousarray(band).view("<u4")[..., 0] & 0xFFFFFF
            labels[:] = self._color_table[codes]
            where = labels == _UNKNOWN
            if where.any():
                colors, counts = np.unique(codes[where], return_counts=True)
                unknown.update(dict(zip(colors.tolist(), counts.tolist(), strict=True)))
                labels[where] = IGNORE
        return mask, unknown

    @cached_property
    def _color_table(self) -> np.ndarray:
        table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
        for (red, green, blue), label in self.colors.items():
            table[red << 16 | green << 8 | blue] = label
        return table


def most_common(counts: Counter[int]) -> list[str]:
    """The three most frequent colours as RRGGBB, of equal ones the smallest first."""
    return [f"{color:06X}" for color in sorted(counts, key=lambda color: (-counts[color], color))[:3]]


def _read_bytes(path: Path) -> bytes | mmap.mmap:
    """Bytes of a file; those of a large one stay on disk."""
    try:
        with path.open("rb") as file:
            is_large = os.fstat(file.fileno()).st_size > _LARGE
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_large else file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {_AGAIN}") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes); {_AGAIN}")
    if _is_truncated(data):
        raise DataError(f"{path} is truncated (its end marker is missing after {len(data)} bytes); {_AGAIN}")
    return data


def _decode(path: Path, data: bytes | mmap.mmap, flags: int) -> np.ndarray:
    """Decode from memory: OpenCV's own file access fails on some non-ASCII paths."""
    pixels: np.ndarray | None
    try:
        if isinstance(data, bytes):
            pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        else:  # OpenCV takes memory for the pixels twice as it is
            with path.open("rb") as file:
                pixels = cv2.imread(f"/proc/self/fd/{file.fileno()}", flags)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {str(error).strip().splitlines()[-1]}; {_AGAIN}") from error
    if pixels is None:
        raise DataError(f"{path} cannot be decoded as an image ({len(data)} bytes); {_AGAIN}")
    return pixels


def _is_truncated(data: bytes | mmap.mmap) -> bool:
    """Whether the end marker of a JPEG or PNG is missing: OpenCV fills what is missing of a JPEG with grey."""
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data[-4096:]
    if data[:2] != b"\xff\xd8":
        return False
    # A thumbnail in the header has an end marker of its own: only what follows the image's first scan counts.
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big") if data[place + 1] != 0xFF else 1
    return data.find(b"\xff\xd9", place) < 0


def _grey_step(data: bytes | mmap.mmap) -> int:
    """What OpenCV multiplies the values of a grey PNG of less than 8 bits with: 1 bit gives 0 and 255."""
    depth, kind = data[24:26] if data[:4] == b"\x89PNG" else (8, 0)
    return 255 // ((1 << depth) - 1) if kind == 0 and depth < 8 else 1
