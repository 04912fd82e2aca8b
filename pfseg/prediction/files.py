"""Files that appear under their name only when they are whole; those of pixels are written a few rows at a time.

Shapes: pixels (r, W, C), r rows from the top downwards, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.preparation.files import cannot_write
from pfseg.data.preparation.png import PngWriter
from pfseg.data.source import Georeference, load_rasterio
from pfseg.errors import one_line
from pfseg.files import PART

_BLOCK = 256  # side of a GeoTIFF's tiles


class PartFile:
    """A file under way: fill it, `close` it, then `publish` it; or `discard` it at any time.

    Until then its name is `part`, which ends in `suffix`, for libraries that go by it.

    Raises:
        WriteError: by every method; the disk is full, or there is no permission.
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        self.path = path
        self.part = path.with_name(f".{path.stem if suffix else path.name}{PART}{suffix}")
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.part.unlink(missing_ok=True)

    def publish(self) -> None:
        """Rename the closed file to its final name, replacing an earlier one."""
        with self.writing():
            self.part.replace(self.path)

    def discard(self) -> None:
        """Remove what was written; does nothing to a published file."""
        with suppress(OSError):
            self.part.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.path, error) from error


class StreamFile(PartFile):
    """A file written by Python itself, one call after the other."""

    def __init__(self, path: Path, suffix: str = "") -> None:
        super().__init__(path, suffix)
        with self.writing():
            self.file = open(self.part, "wb")

    def close(self) -> None:
        """Write the end."""
        with self.writing():
            self.file.close()

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # a full disk
            self.file.close()
        super().discard()


class PngFile(StreamFile):
    """PNG of 1, 3 or 4 channels; see `PngWriter`."""

    def __init__(self, path: Path, shape: tuple[int, int], *, channels: int, dtype: np.dtype) -> None:
        super().__init__(path)
        with self.writing():
            self._png = PngWriter(self.file, shape, channels=channels, dtype=dtype)

    def write(self, pixels: np.ndarray) -> None:
        """Add the next rows."""
        with self.writing():
            self._png.write(pixels)

    def close(self) -> None:
        """Write the end."""
        with self.writing():
            self._png.close()
        super().close()


class NpyFile(StreamFile):
    """NumPy's .npy of the shape (H, W, C), for `numpy.load(..., mmap_mode="r")`."""

    def __init__(self, path: Path, shape: tuple[int, int], *, channels: int, dtype: np.dtype) -> None:
        super().__init__(path)
        self._dtype = dtype
        description = {"descr": dtype.str, "fortran_order": False, "shape": (*shape, channels)}
        with self.writing():
            np.lib.format.write_array_header_1_0(self.file, description)  # type: ignore[no-untyped-call]

    def write(self, pixels: np.ndarray) -> None:
        """Add the next rows."""
        with self.writing():
            self.file.write(np.ascontiguousarray(pixels, self._dtype).data)


class TiffFile(PartFile):
    """Tiled, compressed GeoTIFF; half precision for float16, which GDAL hands out as float32."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        place: Georeference | None,
        *,
        channels: int,
        dtype: np.dtype,
        nodata: float | None,  # value of pixels without data
        colors: dict[int, tuple[int, int, int]] | None,  # colour table of a single channel, RGB
        names: Sequence[str],  # of the channels
    ) -> None:
        self._rasterio = load_rasterio()
        super().__init__(path)
        self._shape = shape
        half = dtype == np.float16
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": shape[0], "width": shape[1], "count": channels, "tiled": True,
            "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "if_safer",
            "interleave": "band", "nodata": nodata, "dtype": dtype.name,
        }  # fmt: skip
        if half:
            profile |= {"dtype": "float32", "nbits": 16}
        elif channels in (3, 4):
            profile |= {"interleave": "pixel", "photometric": "rgb", "alpha": "yes" if channels == 4 else "no"}
        self._bands = np.empty((channels, min(_BLOCK, shape[0]), shape[1]), profile["dtype"])  # a row of tiles
        self._top = self._filled = 0  # its first row in the file, and how many it holds
        with self.writing():
            self._file = self._rasterio.open(self.part, "w", **profile, **(place.profile if place else {}))
            if place and place.gcps:
                self._file.gcps = place.gcps
            if colors:
                self._file.write_colormap(1, colors)
            for band, name in enumerate(names, 1):
                self._file.set_band_description(band, name)

    def write(self, pixels: np.ndarray) -> None:
        """Add the next rows; they are written when they fill tiles, each of which is compressed once."""
        while len(pixels):
            now, pixels = np.split(pixels, [_BLOCK - self._filled])
            self._bands[:, self._filled : self._filled + len(now)] = np.moveaxis(now, 2, 0)
            self._filled += len(now)
            if self._filled == _BLOCK:
                self._flush()

    def close(self) -> None:
        """Write what is left; raises WriteError also where GDAL doesn't tell that it could not write all of it."""
        with self.writing():
            self._flush()
            self._file.close()
            with self._rasterio.open(self.part) as file:
                whole = _is_whole(file, self.part.stat().st_size)
        if not whole:
            raise cannot_write(self.path, OSError(None, "GDAL could not write all of it: the disk may be full"))

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(self._rasterio.errors.RasterioError):
            self._file.close()
        super().discard()

    def _flush(self) -> None:
        if self._filled:
            window = self._rasterio.windows.Window(0, self._top, self._shape[1], self._filled)
            with self.writing():
                self._file.write(self._bands[:, : self._filled], window=window)
            self._top, self._filled = self._top + self._filled, 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert rasterio's errors too; a missing georeference is nothing to warn of."""
        errors = self._rasterio.errors
        with super().writing(), warnings.catch_warnings(action="ignore", category=errors.NotGeoreferencedWarning):
            try:
                yield
            except errors.RasterioError as error:
                raise OSError(None, f"{one_line(error.__cause__ or error)} (the disk may be full)") from error


RowFile = PngFile | NpyFile | TiffFile


def _is_whole(file: Any, size: int) -> bool:
    """Whether all blocks of an open TIFF lie inside the file of `size` bytes."""
    for band, blocks in enumerate(file.block_shapes, 1):
        for row, column in np.ndindex(*(-(-side // block) for side, block in zip(file.shape, blocks, strict=True))):
            tags = (f"BLOCK_{kind}_{column}_{row}" for kind in ("OFFSET", "SIZE"))
            start, length = (file.get_tag_item(tag, "TIFF", bidx=band) for tag in tags)
            if start is None or length is None or int(start) + int(length) > size:
                return False
    return True
