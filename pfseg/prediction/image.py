"""Images of any size, read a few rows at a time: GeoTIFFs and the like through rasterio, PNG and JPEG by OpenCV.

Shapes: pixels (B, r, W) in the file's type, B bands, r rows; RGB (r, W, 3) uint8; valid (r, W) bool.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.data.decode import contrast_table, read_channels
from pfseg.errors import DataError

PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # by OpenCV
GEOGRAPHIC = (".tif", ".tiff", ".jp2", ".vrt")  # by rasterio
_COLORS = ("red", "green", "blue")
_CACHE_BYTES = 64 << 20  # holds a row of tiles of 512 px of an image some 40,000 px wide
_SAMPLE_SIDE = 1024  # percentiles are taken from so many rows and columns
_STRIP = 512  # rows of a file that are thinned out at a time; their bands share the cache
_DARK = 24  # of 255: an image of 16 bits below this was stored with fewer bits than its type has


@dataclass(frozen=True)
class Georeference:
    """Where an image lies, to be copied into GeoTIFFs made from it."""

    profile: dict[str, Any] = field(default_factory=dict)  # `crs` and `transform` for `rasterio.open`, if there are any
    gcps: tuple[list[Any], Any] | None = None  # ground control points and their CRS, instead of a transform


# Both kinds of files have
#     shape (H, W), dtype of the pixels, georeference (None for files that can't have one), and
#     kinds: what each band is, in rasterio's words: red, green, blue, alpha, gray, palette, undefined, ...
#     read(bands, top, bottom): pixels (B, r, W) of the bands, counted from 0
#     valid(top, bottom): pixels (r, W) bool that hold data; None where all do
#     sample(bands): pixels (B, h, w) of a thinned-out image, and which of them hold data
#     palette: colours (256 or 65536, 3) uint8 of the values of a band of the kind palette


class _Plain:
    """PNG, JPEG, BMP, WebP: decoded as a whole, since these formats can't be read in parts."""

    georeference: Georeference | None = None
    palette = np.empty((0, 3), np.uint8)  # OpenCV turns palettes into colours

    def __init__(self, path: Path) -> None:
        pixels = read_channels(path)
        self._pixels = pixels.reshape(*pixels.shape[:2], -1)
        self.shape, self.dtype = (pixels.shape[0], pixels.shape[1]), pixels.dtype
        colors, alpha = divmod(self._pixels.shape[2] - 1, 2)
        self.kinds: tuple[str, ...] = (*(_COLORS if colors else ("gray",)), *["alpha"] * alpha)

    def read(self, bands: Sequence[int], top: int, bottom: int) -> np.ndarray:
        return np.moveaxis(self._pixels[top:bottom], 2, 0)[list(bands)]

    def valid(self, top: int, bottom: int) -> np.ndarray | None:
        return self._pixels[top:bottom, :, -1] > 0 if self.kinds[-1] == "alpha" else None

    def sample(self, bands: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        rows, columns = (max(1, side // _SAMPLE_SIDE) for side in self.shape)
        valid = self.valid(0, self.shape[0])
        pixels = self.read(bands, 0, self.shape[0])[:, ::rows, ::columns]
        return pixels, None if valid is None else valid[::rows, ::columns]

    def close(self) -> None:
        del self._pixels


class _Raster:
    """Whatever rasterio reads, in windows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path) as rasterio:
            self._file = rasterio.open(path)
        if not self._file.count:
            count = len(self._file.subdatasets)
            raise DataError(f"{path} holds no bands, only {count} subdatasets: export one as a TIFF")
        self.shape: tuple[int, int] = self._file.shape
        self.dtype = np.result_type(*self._file.dtypes)
        points = self._file.gcps
        profile: dict[str, Any] = {"crs": self._file.crs} if self._file.crs else {}
        if not self._file.transform.is_identity:
            profile["transform"] = self._file.transform
        self.georeference: Georeference | None = Georeference(profile, points if points[0] else None)
        self.kinds: tuple[str, ...] = tuple(kind.name for kind in self._file.colorinterp)
        if self.kinds[:2] == ("gray", "undefined") and len(self.kinds) == 3 and self.kinds[2] != "palette":
            self.kinds = _COLORS  # three bands of which nothing is said
        self.palette = np.zeros((256 if self.dtype == np.uint8 else 65536, 3), np.uint8)
        for value, color in self._file.colormap(1).items() if self.kinds[0] == "palette" else ():
            self.palette[value] = color[:3]
        self._masked = any("all_valid" not in {flag.name for flag in flags} for flags in self._file.mask_flag_enums)

    def read(self, bands: Sequence[int], top: int, bottom: int) -> np.ndarray:
        with self._window(top, bottom) as window:
            return np.asarray(self._file.read([band + 1 for band in bands], window=window))

    def valid(self, top: int, bottom: int) -> np.ndarray | None:
        if not self._masked:
            return None
        with self._window(top, bottom) as window:
            return np.asarray(self._file.dataset_mask(window=window)) > 0

    def sample(self, bands: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        rows, columns = (min(side, _SAMPLE_SIDE) for side in self.shape)
        pixels = np.empty((len(bands), rows, columns), self.dtype)
        valid = np.empty((rows, columns), bool) if self._masked else None
        for y0 in range(0, self.shape[0], _STRIP):
            y1 = min(y0 + _STRIP, self.shape[0])
            top, bottom = (-(-y * rows // self.shape[0]) for y in (y0, y1))
            if top == bottom:
                continue
            with self._window(y0, y1) as window:
                indexes, size = [band + 1 for band in bands], (bottom - top, columns)
                pixels[:, top:bottom] = self._file.read(indexes, out_shape=(len(bands), *size), window=window)
                if valid is not None:
                    valid[top:bottom] = self._file.dataset_mask(out_shape=(1, *size), window=window) > 0
        return pixels, valid

    @contextmanager
    def _window(self, top: int, bottom: int) -> Iterator[Any]:
        with _reading(self._path) as rasterio:
            yield rasterio.windows.Window(0, top, self.shape[1], bottom - top)

    def close(self) -> None:
        self._file.close()


class Image(AbstractContextManager["Image"]):
    """An open image of `shape` (H, W) that gives RGB rows; `warnings` are oddities for the user.

    Args:
        path: the file.
        bands: those that become red, green and blue, counted from 0; None: the file's own red, green and blue.
        stretch: percentiles [low, high] that become black and white in images of more than 8 bits, taken from a
            thinned-out image without its pixels that hold no data; None maps the full range of 16 bits.
        contrast: as of `pfseg.data.decode.even_contrast`, with the mean and deviation of the thinned-out image.
        nodata: tell the pixels without data: the file's nodata value, transparent or masked ones.

    Raises:
        DataError: unreadable, or the bands or their type don't fit; says what to set.
    """

    def __init__(
        self,
        path: Path,
        *,
        bands: Sequence[int] | None,
        stretch: Sequence[float] | None,
        contrast: float | None = None,
        nodata: bool = True,
    ) -> None:
        self.path, self._nodata = path, nodata
        self.warnings: list[str] = []
        self._file: _Plain | _Raster = _Plain(path) if path.suffix.lower() in PLAIN else _Raster(path)
        self.shape, self.georeference = self._file.shape, self._file.georeference
        self._bands = _choose_bands(path, self._file.kinds, bands)
        self._palette = self._file.palette if self._file.kinds[self._bands[0]] == "palette" else None
        self._range = self._find_range(stretch)
        self._table: np.ndarray | None = None  # what becomes of each grey level (256,) uint8
        if contrast is not None:
            pixels, valid = self._file.sample(self._bands)
            rgb = self._rgb(pixels)
            self._table = contrast_table(rgb if valid is None else rgb.reshape(-1, 3)[valid.ravel()], contrast)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def has_nodata(self) -> bool:
        """Whether any pixel may be without data."""
        return self._nodata and self._file.valid(0, 1) is not None

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows `top` to `bottom` as RGB, and where they hold data, None for everywhere; raises DataError if damaged."""
        rgb = self._rgb(self._file.read(self._bands, top, bottom))
        if self._table is not None:
            rgb = cv2.LUT(rgb, self._table)
        return rgb, self._file.valid(top, bottom) if self._nodata else None

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Bands (B, h, w) as they are stored, as (h, w, 3) uint8."""
        rgb = self._palette[pixels[0]] if self._palette is not None else np.moveaxis(self._to_8_bits(pixels), 0, 2)
        return np.ascontiguousarray(np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb)

    def _to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
        if self._range is not None:
            low, high = self._range
            scaled = (pixels - low[:, None, None]) * (255 / np.maximum(high - low, 1e-12))[:, None, None]
            return np.asarray(np.nan_to_num(scaled.round().clip(0, 255)), np.uint8)
        return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)

    def _find_range(self, stretch: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Values that become 0 and 255, per band; None where the type alone says it."""
        dtype = self._file.dtype
        if dtype == np.uint8 or self._palette is not None:
            return None
        if dtype.kind == "c" or (stretch is None and dtype != np.uint16):
            raise DataError(
                f"{self.path} has values of {dtype}; expected 8 or 16 bits without sign, or percentiles that become "
                "black and white: set stretch=[2,98]"
            )
        pixels, valid = self._file.sample(self._bands)
        values = pixels.reshape(len(pixels), -1)[:, slice(None) if valid is None else valid.ravel()].astype(np.float64)
        values = values[:, np.isfinite(values).all(0)]
        if stretch is not None:
            low, high = np.percentile(values, stretch, axis=1) if values.size else np.array([[0.0], [1.0]])
            return np.broadcast_to(low, len(pixels)), np.broadcast_to(high, len(pixels))
        if values.size and (brightest := float(np.percentile(values, 99))) < _DARK * 257:
            self.warnings.append(
                f"{self.path}: 99 % of its values of 16 bits are at most {brightest:.0f}, so that the image is nearly "
                "black to the network; stretch=[2,98] uses its own range"
            )
        return None


def _choose_bands(path: Path, kinds: Sequence[str], bands: Sequence[int] | None) -> list[int]:
    """Bands to show, three or one, counted from 0."""
    count = len(kinds)
    what = f"{path} has {count} {'band' if count == 1 else 'bands'} ({', '.join(kinds)})"
    if bands is not None:
        if max(bands) >= count:
            raise DataError(f"{what}, but bands={list(bands)} asks for band {max(bands)}, counted from 0")
        return list(bands)
    if set(_COLORS) <= set(kinds):
        return [kinds.index(color) for color in _COLORS]
    shown = [index for index, kind in enumerate(kinds) if kind != "alpha"]
    if len(shown) == 1:
        return shown
    raise DataError(f"{what}; say which are red, green and blue, counted from 0: bands=[2,1,0]")


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """rasterio, whose errors name the file; a missing georeference is nothing to warn of."""
    rasterio = import_geo("rasterio", str(path))
    try:
        with warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning):
            yield rasterio
    except rasterio.errors.RasterioError as error:
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read: {' '.join(str(cause).split())}; copy it again") from error


def bounded_cache() -> Any:
    """Context in which GDAL's cache of decoded blocks is small, which else takes 5 % of the machine's memory."""
    try:
        return import_module("rasterio").Env(GDAL_CACHEMAX=_CACHE_BYTES)
    except ImportError:
        return nullcontext()


def import_geo(package: str, needed_by: object) -> Any:
    """rasterio, with all that is used of it, or pyogrio; raises DataError where it isn't installed."""
    try:
        for part in (".features", ".warp", ".windows") if package == "rasterio" else ():
            import_module(package + part)
        return import_module(package)
    except ImportError as error:
        raise DataError(f"{needed_by} needs {package}, which is not installed: pip install 'pfseg[geo]'") from error
