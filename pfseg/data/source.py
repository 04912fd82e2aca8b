"""What an open image file is, whatever reads it; faults that name it; and rasterio.

Shapes: pixels (B, r, W) in the file's type, B bands, r rows; mask (r, W) bool.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import PurePath, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np

from pfseg.errors import DataError, PfsegError, one_line

COLORS = ("red", "green", "blue")
AGAIN = "copy it again"
_CACHE = "64"  # MiB that GDAL keeps, a row of tiles of 512 px of an image some 40,000 px wide
_HTTP = {"GDAL_HTTP_CONNECTTIMEOUT": "20", "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "1"}
_STRIP = 512  # rows that are thinned out at a time; their bands share the cache
_opening = threading.Lock()


class Remote(PurePosixPath):
    """An image behind a URL, of which GDAL reads the parts that are needed."""

    def __str__(self) -> str:
        """The URL, both slashes of which paths don't keep."""
        return super().__str__().replace(":/", "://", 1)


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


class Part(NamedTuple):
    """A rectangle of an image, in its pixels, that is read as `shape` (H, W)."""

    y: int
    x: int
    height: int
    width: int
    shape: tuple[int, int]
    polygons: Sequence[dict[str, Any]] = ()  # what to map of it, as GeoJSON in the image's CRS; none: all

    @property
    def steps(self) -> tuple[float, float]:
        """Rows and columns of the image that become one."""
        return self.height / self.shape[0], self.width / self.shape[1]


class Source:
    """An open file. `kinds` says what each band is, in GDAL's words: red, alpha, gray, palette, undefined, ..."""

    path: PurePath
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

    def narrow(self, part: Part) -> None:
        """From now on be a part of the image."""
        raise NotImplementedError

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


@contextmanager
def naming(path: PurePath | str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a DataError of one line that names it."""
    try:
        yield
    except PfsegError:
        raise
    except MemoryError:
        raise DataError(f"{path} does not fit into memory") from None
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {one_line(error.err or error)}; {AGAIN}") from error
    except Exception as error:
        cause = getattr(error, "strerror", None) or one_line(error.__cause__ or error)
        remedy = "check the address and the network" if isinstance(path, Remote) else _remedy(cause)
        raise DataError(f"{path} cannot be read: {cause}; {remedy}") from error


def _remedy(cause: str) -> str:
    if any(word in cause.lower() for word in ("codec", "not supported", "unsupported", "compression")):
        return "convert it, such as by gdal_translate -co COMPRESS=DEFLATE"
    return AGAIN


@contextmanager
def quiet() -> Iterator[None]:
    """Keep rasterio from warning of missing georeferences; all threads have one list of warnings."""
    with _opening, warnings.catch_warnings(action="ignore"):
        yield


@cache
def load_rasterio() -> Any:
    """Rasterio with all that is used of it, on first use: it takes a third of a second to import.

    GDAL keeps to a small cache and off the terminal.
    """
    # In the environment, as an `Env` around every call would take longer than a small file.
    for key, value in {"GDAL_CACHEMAX": _CACHE, **_HTTP}.items():
        os.environ.setdefault(key, value)
    for part in ("", ".features", ".warp", ".windows", ".transform"):
        import_module(f"rasterio{part}")
    logger = logging.getLogger("rasterio")  # what GDAL says becomes part of an error, or is of no interest
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return import_module("rasterio")
