"""Image files as they are stored: GDAL reads TIFF, JPEG 2000 and VRT a few rows at a time, OpenCV the others whole.

Shapes: pixels (B, r, W) in the file's type, B bands, r rows; mask (r, W) bool.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

import cv2
import numpy as np

from pfseg.data.header import Bytes, Header, read_header
from pfseg.data.raster import Raster
from pfseg.data.source import AGAIN, COLORS, Remote, Source, naming
from pfseg.errors import DataError

PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # by OpenCV
GEOGRAPHIC = (".tif", ".tiff", ".jp2", ".vrt")  # by GDAL, through rasterio
_LARGE = 1 << 26  # bytes of a file from which on it is not read into memory as a whole
_MOST = 1 << 30  # pixels that OpenCV decodes
_ROWS = 1 << 18  # pixels whose order of colours is turned at a time, which fits a processor's cache
_TURNS = {  # what shows an image upright, by its EXIF orientation
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: lambda pixels: cv2.transpose(pixels),
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def by_gdal(path: PurePath) -> bool:
    """Whether GDAL reads an image, a few rows at a time; OpenCV decodes the others whole."""
    return isinstance(path, Remote) or path.suffix.lower() in GEOGRAPHIC


def open_source(path: PurePath) -> Source:
    """Open an image or mask; raises DataError, which names the file, its fault and the remedy."""
    with naming(path):
        return Raster(path) if by_gdal(path) else _open_plain(Path(path))


def shape_of(path: Path) -> tuple[int, int]:
    """Rows and columns of a file as it is stored, from its head where the format has one; raises DataError."""
    with naming(path):
        if path.suffix.lower() not in GEOGRAPHIC and (header := _header(path, read_bytes(path, 0), whole=False)):
            return header.height, header.width
        source = open_source(path)
        source.close()
        return source.shape


def plain_kind(path: Path) -> tuple[str, int] | None:
    """Type and channels of a PNG or JPEG of 8 bits by its head alone; None for all other files; raises DataError."""
    with naming(path):
        header = None if path.suffix.lower() in GEOGRAPHIC else _header(path, read_bytes(path, 0), whole=False)
        return ("uint8", header.channels) if header and header.bits <= 8 else None


def read_bytes(path: Path, most: int = _LARGE) -> Bytes:
    """Bytes of a file; those of one with more than `most` stay on disk."""
    with path.open("rb") as file:
        is_large = os.fstat(file.fileno()).st_size > most
        data: Bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_large else file.read()
    if not data:
        raise DataError(f"{path} is empty (0 bytes); {AGAIN}")
    return data


def decode(path: Path) -> tuple[np.ndarray, Header | None]:
    """Pixels (H, W) or (H, W, C) of a PNG, JPEG, BMP or WebP, colours in the order RGB or RGBA, palettes as colours.

    Raises:
        DataError: missing, empty, truncated or no image.
    """
    with naming(path):
        data = read_bytes(path)
        header = _header(path, data)
        return _decode(path, data), header


def _header(path: Path, data: Bytes, *, whole: bool = True) -> Header | None:
    try:
        return read_header(data, whole=whole)
    except DataError as error:
        raise DataError(f"{path} {error}; {AGAIN}") from None


def _open_plain(path: Path) -> Source:
    data = read_bytes(path)
    header = _header(path, data)
    if header and header.height * header.width > _MOST:
        return Raster(path)
    return _Plain(path, _decode(path, data), header)


class _Silence:
    """While any thread is within, what libraries write to the standard error output by themselves goes nowhere.

    libpng and OpenCV write there of each file with an odd profile; what is wrong with a file is said by our errors.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._output = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock, suppress(OSError):  # there may be no such output
            if self._threads == 0:
                self._output = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads = max(0, self._threads - 1)
            if self._threads == 0 and self._output >= 0:
                os.dup2(self._output, 2)
                os.close(self._output)
                self._output = -1


_silenced = _Silence()


def _decode(path: Path, data: Bytes) -> np.ndarray:
    """Decode from memory: OpenCV's own file access fails on some non-ASCII paths."""
    pixels: np.ndarray | None
    with _silenced:
        if isinstance(data, bytes):
            pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        else:  # OpenCV takes memory for the pixels twice as it is
            with path.open("rb") as file:
                pixels = cv2.imread(f"/proc/self/fd/{file.fileno()}", cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"{path} cannot be decoded as an image ({len(data)} bytes); {AGAIN}")
    if pixels.ndim == 3:  # turned in place: a second copy of a large scene may not fit in memory
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        rows = max(1, _ROWS // pixels.shape[1])
        for top in range(0, len(pixels), rows):
            pixels[top : top + rows] = cv2.cvtColor(pixels[top : top + rows], code)
    return pixels


class _Plain(Source):
    """PNG, JPEG, BMP, WebP: decoded as a whole, since these formats can't be read in parts."""

    whole = True

    def __init__(self, path: Path, pixels: np.ndarray, header: Header | None) -> None:
        self.path, self.dtype = path, pixels.dtype
        self._set(pixels)
        self.orientation = header.orientation if header else 1
        colors, alpha = divmod(self._pixels.shape[2] - 1, 2)
        self.kinds = (*(COLORS if colors else ("gray",)), *["alpha"] * alpha)
        self.nodata = (None,) * len(self.kinds)

    def _set(self, pixels: np.ndarray) -> None:
        self._pixels = pixels.reshape(*pixels.shape[:2], -1)
        self.shape = (pixels.shape[0], pixels.shape[1])

    def read(self, bands: Sequence[int], top: int, bottom: int) -> np.ndarray:
        planes = np.moveaxis(self._pixels[top:bottom], 2, 0)
        return planes if list(bands) == list(range(len(planes))) else planes[list(bands)]

    def turn(self) -> None:
        self._set(_TURNS[self.orientation](self._pixels))

    def close(self) -> None:
        del self._pixels
