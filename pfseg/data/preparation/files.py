"""Single patch files: coded, written in one step, and checked by their checksums."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from isal import isal_zlib

from pfseg import files
from pfseg.data.preparation.png import encode_png
from pfseg.data.source import load_rasterio, quiet
from pfseg.errors import WriteError

Stamp = tuple[int, str]  # bytes of a file and their CRC-32 as 8 hexadecimal digits
_EXACT = 1 << 24  # OpenCV's histogram counts in float32, which is exact up to here
_BLOCK = 1 << 20  # bytes that are read at a time
_ROWS = 64  # of a strip of a TIFF
_AGAIN = ", then give the same command again to continue; what was written is kept"


def suffix_of(channels: int) -> str:
    """Ending of the images of patches: PNG can hold other numbers of bands than one and three only as transparency."""
    return ".png" if channels in (1, 3) else ".tif"


def encode(pixels: np.ndarray, level: int) -> bytes:
    """An image (H, W, C) uint8, or a mask (H, W), as a file of the format that `suffix_of` names; `level` 0 to 3."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if suffix_of(channels) == ".png":
        return encode_png(pixels, level)
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": channels, "dtype": "uint8"}
    how = {"compress": "deflate", "predictor": 2, "zlevel": 1 + 2 * level, "blockysize": _ROWS}
    how |= {"interleave": "pixel", "photometric": "minisblack", "alpha": "unspecified"}
    with load_rasterio().MemoryFile() as memory:
        with quiet():
            file = memory.open(driver="GTiff", **shape, **how)
        with file:
            file.write(np.moveaxis(pixels, 2, 0))
        return bytes(memory.getbuffer())


def stamp(blocks: Iterable[bytes]) -> Stamp:
    """The stamp of a file by its content."""
    size = checksum = 0
    for block in blocks:
        size, checksum = size + len(block), isal_zlib.crc32(block, checksum)
    return size, f"{checksum:08x}"


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file; raises OSError."""
    with path.open("rb") as file:
        return stamp(iter(lambda: file.read(_BLOCK), b""))


def stamp_fault(path: Path, expected: Stamp) -> str | None:
    """How a file differs from the one of this stamp; None if it doesn't."""
    try:
        size, checksum = stamp_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if size != expected[0]:
        return f"has {size:,} bytes, expected {expected[0]:,}"
    if checksum != expected[1]:
        return f"is damaged or was changed (checksum {checksum}, expected {expected[1]})"
    return None


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none; raises WriteError, which tells how to continue."""
    try:
        files.write_atomic(path, data, sync=False)
    except WriteError as error:
        raise WriteError(f"{error}{_AGAIN}") from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that can't be written, which tells how to continue."""
    return WriteError(f"{files.cannot_write(path, error)}{_AGAIN}")


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Pixels of each value of (H, W) uint8: (256,) int64."""
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, _EXACT // max(1, labels.shape[1]))
    for top in range(0, len(labels), rows):
        part = labels[top : top + rows]
        counts += cv2.calcHist([part], [0], None, [256], [0, 256])[:, 0].astype(np.int64)
    return counts
