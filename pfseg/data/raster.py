"""Images that GDAL reads, TIFF, JPEG 2000 and VRT above all: a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import PurePath
from typing import Any

import numpy as np

from pfseg.data.source import COLORS, Georeference, Part, Remote, Source, load_rasterio, naming, quiet
from pfseg.errors import DataError

_BLOCK = 64  # rows that are resampled at a time


class Raster(Source):
    """Whatever GDAL reads, in windows."""

    georeference: Georeference

    def __init__(self, path: PurePath) -> None:
        self.path = path
        # A URL is asked for nothing but the file: no listing, no files beside it.
        alone = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if isinstance(path, Remote) else {}
        with _gdal(path) as rasterio, quiet(), rasterio.Env(**alone) if alone else nullcontext():
            self._file = rasterio.open(str(path) if alone else path)
            if self._file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
                self._file.close()  # GDAL would turn the four bands, often blue to infrared, into RGB
                self._file = rasterio.open(f"GTIFF_RAW:{path}")
            if not self._file.count:
                count = len(self._file.subdatasets)
                raise DataError(f"{path} holds no bands, only {count} subdatasets: export one as a TIFF")
            self._describe()
        self._part = Part(0, 0, *self.shape, self.shape)

    def narrow(self, part: Part) -> None:
        """From now on be a part of the image; values are averaged or interpolated where its pixels are others."""
        self._part, self.shape = part, part.shape
        profile = dict(self.georeference.profile)
        whole = profile["transform"]
        profile["transform"] = whole * whole.translation(part.x, part.y) * whole.scale(*part.steps[::-1])
        self.georeference = Georeference(profile)

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
        """See `Source`."""
        if self.palette is None:
            how = "average" if self._part.steps[0] > 1 else "bilinear"
            return self._rows(self._file.read, [band + 1 for band in bands], top, bottom, how)
        values = self._rows(self._file.read, 1, top, bottom, "nearest")
        return np.stack([self.palette[:, band][values] for band in bands])

    def mask(self, top: int, bottom: int) -> np.ndarray:
        """See `Source`."""
        return self._rows(self._file.read_masks, 1, top, bottom, "nearest") > 0

    def _rows(self, read: Any, bands: list[int] | int, top: int, bottom: int, resampling: str) -> np.ndarray:
        """Some rows of bands by a method of rasterio's; resampled ones don't depend on which rows are asked for."""
        part, (down, _) = self._part, self._part.steps
        with _gdal(self.path) as rasterio:
            if part.steps == (1, 1):
                window = rasterio.windows.Window(part.x, part.y + top, part.width, bottom - top)
                return np.asarray(read(bands, window=window))
            blocks, how = [], rasterio.enums.Resampling[resampling]
            for first in range(top - top % _BLOCK, bottom, _BLOCK):  # GDAL's answer depends on where a window ends
                count = min(_BLOCK, self.shape[0] - first)
                window = rasterio.windows.Window(part.x, part.y + first * down, part.width, count * down)
                block = read(bands, window=window, out_shape=(count, self.shape[1]), resampling=how)
                blocks.append(block[..., max(0, top - first) : bottom - first, :])
            return np.concatenate(blocks, axis=-2)

    def values(self) -> np.ndarray:
        """See `Source`."""
        with _gdal(self.path):
            return np.asarray(self._file.read(1))

    def close(self) -> None:
        """See `Source`."""
        self._file.close()


def _fitting(nodata: float | None, dtype: np.dtype) -> float | None:
    """A nodata value, unless the type of the pixels can't hold it."""
    if nodata is None or dtype.kind in "fc":
        return nodata
    limits = np.iinfo(dtype)
    return int(nodata) if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None


@contextmanager
def _gdal(path: PurePath) -> Iterator[Any]:
    """rasterio, with faults that name the file."""
    with naming(path):
        yield load_rasterio()
