"""Image files as they are stored: GDAL reads TIFF, JPEG 2000 and VRT a few rows at a time, OpenCV the others whole.

Shapes: pixels (B, r, W) in the file's type, B bands, r rows; mask (r, W) bool.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.data.header import Bytes, Header, read_header
from pfseg.errors import DataError, PfsegError, one_line

PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # by OpenCV
GEOGRAPHIC = (".tif", ".tiff", ".jp2", ".vrt")  # by GDAL, through rasterio
COLORS = ("red", "green", "blue")
_CACHE = "64"  # MiB that GDAL keeps, a row of tiles of 512 px of an image some 40,000 px wide
_LARGE = 1 << 26  # bytes of a file from which on it is not read into memory as a whole
_MOST = 1 << 30  # pixels that OpenCV decodes
_STRIP = 512  # rows that are thinned out at a time; their bands share the cache
_ROWS = 1 << 18  # pixels whose order of colours is turned at a time, which fits a processor's cache
_AGAIN = "copy it again, or leave damaged files out with dataset.on_error=skip"
_opening = threading.Lock()
_TURNS = {  # what shows an image upright, by its EXIF orientation
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: lambda pixels: cv2.transpose(pixels),
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


@dataclass(frozen=True)
class Georeference:
    """Where an image lies, to be copied into GeoTIFFs made from it."""

    profile: dict[str, Any] = field(default_factory=dict)  # `crs` and `transform` for `rasterio.open`, if there are any
    gcps: tuple[list[Any], Any] | None = None  # ground control points and their CRS, instead of a transform

    def grid(self) -> tuple[Any, Any, str]:
        """The transform from pixels to coordinates, their CRS (None: pixels), and a note for the user."""
        if "transform" in self.profile:
            crs = self.profile.get("crs")
            return self.profile["transform"], crs, "" if crs else "the image has no CRS"
        if self.gcps:
            fitted = load_rasterio().transform.from_gcps(self.gcps[0])
            return fitted, self.gcps[1], f"placed by the plane through {len(self.gcps[0])} ground control points"
        return None, None, "the image has a CRS, but no transform" if self.profile else "the image has no CRS"


class Source:
    """An open file. `kinds` says what each band is, in GDAL's words: red, alpha, gray, palette, undefined, ..."""

    path: Path
    shape: tuple[int, int]  # H, W
    dtype: np.dtype  # of the pixels
    kinds: tuple[str, ...]
    georeference: Georeference | None = None  # None for files that can't have one
    nodata: tuple[float | None, ...] = ()  # value without data of each band, NaN included
    palette: np.ndarray | None = None  # colours (N, 3) uint8 of the values that the bands are read from
    masked = False  # whether the file has a mask of its own, apart from its bands
    whole = False  # whether all of it is in memory
    bits = 0  # of the values where the type has more: 1, 2 or 4; else 0
    orientation = 1  # of EXIF

    def read(self, bands: Sequence[int], top: int, bottom: int) -> np.ndarray:
        """Rows of bands, counted from 0."""
        raise NotImplementedError

    def mask(self, top: int, bottom: int) -> np.ndarray:
        """Where the file's own mask lets pixels through."""
        raise NotImplementedError

    def values(self) -> np.ndarray:
        """The values (H, W) that a palette turns into colours."""
        raise NotImplementedError

    def turn(self) -> None:
        """Show the image as its EXIF orientation says."""

    def close(self) -> None:
        """Close the file."""

    def sample(self, bands: Sequence[int], side: int) -> tuple[np.ndarray, np.ndarray | None]:
        """At most `side` rows and columns, evenly spread: pixels (B, h, w) and the file's own mask (h, w), if any."""
        rows, columns = (np.arange(min(n, side)) * n // min(n, side) for n in self.shape)
        pixels = np.empty((len(bands), len(rows), len(columns)), self.dtype)
        mask = np.empty((len(rows), len(columns)), bool) if self.masked else None
        for top in range(0, self.shape[0], _STRIP):
            bottom = min(top + _STRIP, self.shape[0])
            first, last = np.searchsorted(rows, (top, bottom))
            if first == last:
                continue
            place = np.ix_(rows[first:last] - top, columns)
            for plane, out in zip(self.read(bands, top, bottom), pixels, strict=True):
                out[first:last] = plane[place]
            if mask is not None:
                mask[first:last] = self.mask(top, bottom)[place]
        return pixels, mask


def open_source(path: Path) -> Source:
    """Open an image or mask; raises DataError, which names the file, its fault and the remedy."""
    with naming(path):
        return _Raster(path) if path.suffix.lower() in GEOGRAPHIC else _open_plain(path)


def open_raster(path: Path) -> Source:
    """Open a file through GDAL whatever its format, which leaves palettes as they are; raises DataError."""
    return _Raster(path)


def shape_of(path: Path) -> tuple[int, int]:
    """Rows and columns of a file as it is stored, from its head where the format has one; raises DataError."""
    with naming(path):
        if path.suffix.lower() not in GEOGRAPHIC and (header := _header(path, read_bytes(path, 0))):
            return header.height, header.width
        source = open_source(path)
        source.close()
        return source.shape


def plain_kind(path: Path) -> tuple[str, int] | None:
    """Type and channels of a PNG or JPEG of 8 bits by its head alone; None for all other files; raises DataError."""
    with naming(path):
        header = None if path.suffix.lower() in GEOGRAPHIC else _header(path, read_bytes(path, 0))
        return ("uint8", header.channels) if header and header.bits <= 8 else None


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a DataError of one line that names it."""
    try:
        yield
    except PfsegError:
        raise
    except MemoryError:
        raise DataError(f"{path} does not fit into memory") from None
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {one_line(error.err or error)}; {_AGAIN}") from error
    except Exception as error:
        cause = getattr(error, "strerror", None) or one_line(error.__cause__ or error)
        raise DataError(f"{path} cannot be read: {cause}; {_remedy(cause)}") from error


def _remedy(cause: str) -> str:
    if any(word in cause.lower() for word in ("codec", "not supported", "unsupported", "compression")):
        return "convert it, such as by gdal_translate -co COMPRESS=DEFLATE"
    return _AGAIN


def read_bytes(path: Path, most: int = _LARGE) -> Bytes:
    """Bytes of a file; those of one with more than `most` stay on disk."""
    with path.open("rb") as file:
        is_large = os.fstat(file.fileno()).st_size > most
        data: Bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_large else file.read()
    if not data:
        raise DataError(f"{path} is empty (0 bytes); {_AGAIN}")
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


def _header(path: Path, data: Bytes) -> Header | None:
    try:
        return read_header(data)
    except DataError as error:
        raise DataError(f"{path} {error}; {_AGAIN}") from None


def _open_plain(path: Path) -> Source:
    data = read_bytes(path)
    header = _header(path, data)
    if header and header.height * header.width > _MOST:
        return _Raster(path)
    return _Plain(path, _decode(path, data), header)


def _decode(path: Path, data: Bytes) -> np.ndarray:
    """Decode from memory: OpenCV's own file access fails on some non-ASCII paths."""
    pixels: np.ndarray | None
    if isinstance(data, bytes):
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    else:  # OpenCV takes memory for the pixels twice as it is
        with path.open("rb") as file:
            pixels = cv2.imread(f"/proc/self/fd/{file.fileno()}", cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"{path} cannot be decoded as an image ({len(data)} bytes); {_AGAIN}")
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


class _Raster(Source):
    """Whatever GDAL reads, in windows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _gdal(path) as rasterio, quiet():
            self._file = rasterio.open(path)
            if self._file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
                self._file.close()  # GDAL would turn the four bands, often blue to infrared, into RGB
                self._file = rasterio.open(f"GTIFF_RAW:{path}")
            if not self._file.count:
                count = len(self._file.subdatasets)
                raise DataError(f"{path} holds no bands, only {count} subdatasets: export one as a TIFF")
            self._describe()

    def _describe(self) -> None:
        file = self._file
        self.shape, self.dtype = file.shape, np.result_type(*file.dtypes)
        points = file.gcps
        profile: dict[str, Any] = {"crs": file.crs} if file.crs else {}
        if not file.transform.is_identity:
            profile["transform"] = file.transform
        self.georeference = Georeference(profile, points if points[0] else None)
        self.nodata = tuple(
            _fitting(value, np.dtype(dtype)) for value, dtype in zip(file.nodatavals, file.dtypes, strict=True)
        )
        self.kinds = tuple(kind.name for kind in file.colorinterp)
        bits = int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 0))
        self.bits = bits if bits in (1, 2, 4) and self.dtype == np.uint8 else 0
        flags = {flag.name for flag in file.mask_flag_enums[0]}
        self.masked = "per_dataset" in flags and "alpha" not in flags
        if self.kinds == ("palette",):
            self._set_palette({value: color[:3] for value, color in file.colormap(1).items()})

    def _set_palette(self, colors: dict[int, tuple[int, int, int]]) -> None:
        """The file has three bands, its colours, as a PNG with a palette has."""
        if self.bits == 1 and sorted(colors.values()) == [(0, 0, 0), (255, 255, 255)]:  # GDAL's own for a bit
            self.kinds = ("gray",)
            return
        self.palette = np.zeros((1 << 8 * self.dtype.itemsize, 3), np.uint8)
        for value, color in colors.items():
            self.palette[value] = color
        self.masked |= self.nodata[0] is not None
        self.kinds, self.nodata, self.dtype, self.bits = COLORS, (None,) * 3, np.dtype(np.uint8), 0

    def read(self, bands: Sequence[int], top: int, bottom: int) -> np.ndarray:
        with _gdal(self.path) as rasterio:
            window = rasterio.windows.Window(0, top, self.shape[1], bottom - top)
            if self.palette is None:
                return np.asarray(self._file.read([band + 1 for band in bands], window=window))
            values = self._file.read(1, window=window)
            return np.stack([self.palette[:, band][values] for band in bands])

    def mask(self, top: int, bottom: int) -> np.ndarray:
        with _gdal(self.path) as rasterio:
            window = rasterio.windows.Window(0, top, self.shape[1], bottom - top)
            return np.asarray(self._file.read_masks(1, window=window)) > 0

    def values(self) -> np.ndarray:
        with _gdal(self.path):
            return np.asarray(self._file.read(1))

    def close(self) -> None:
        self._file.close()


def _fitting(nodata: float | None, dtype: np.dtype) -> float | None:
    """A nodata value, unless the type of the pixels can't hold it."""
    if nodata is None or dtype.kind in "fc":
        return nodata
    limits = np.iinfo(dtype)
    return int(nodata) if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep rasterio from warning of missing georeferences; all threads have one list of warnings."""
    with _opening, warnings.catch_warnings(action="ignore"):
        yield


@contextmanager
def _gdal(path: Path) -> Iterator[Any]:
    """rasterio, with faults that name the file."""
    with naming(path):
        yield load_rasterio()


@cache
def load_rasterio() -> Any:
    """Rasterio with all that is used of it, on first use: it takes a third of a second to import.

    GDAL keeps to a small cache and off the terminal.
    """
    os.environ.setdefault("GDAL_CACHEMAX", _CACHE)  # an `Env` around every call would take longer than a small file
    for part in ("", ".features", ".warp", ".windows", ".transform"):
        import_module(f"rasterio{part}")
    logger = logging.getLogger("rasterio")  # what GDAL says becomes part of an error, or is of no interest
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return import_module("rasterio")
