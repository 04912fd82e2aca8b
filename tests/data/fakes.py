"""Files of tiny data sets with the layout of real ones."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp

CLASSES = [{"name": "roof", "color": "3C1098"}, {"name": "road", "color": [110, 193, 228]}]
COLORS = np.array([[0x3C, 0x10, 0x98], [110, 193, 228]], dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    """Write RGB or grey pixels in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert ok
    path.write_bytes(data.tobytes())


def tif(
    path: Path, bands: np.ndarray, kinds: Sequence[ColorInterp] = (), mask: np.ndarray | None = None, **profile: Any
) -> None:
    """Write bands (B, H, W) as a GeoTIFF, or as what the profile says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    shape = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": bands.dtype}
    palette = profile.pop("palette", None)
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **shape | profile) as file,
    ):
        if kinds:
            file.colorinterp = kinds
        if palette:
            file.write_colormap(1, palette)
        file.write(bands)
        if mask is not None:
            file.write_mask(mask)


def png(pixels: np.ndarray, depth: int, kind: int, palette: bytes = b"", width: int | None = None) -> bytes:
    """A PNG of packed rows, which OpenCV cannot write itself."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = (pixels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(pixels), -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", width or pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    plte = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + plte + chunk(b"IDAT", body) + chunk(b"IEND", b"")
