"""What the heads of PNG and JPEG files say, and whether the files are whole, without decoding any pixel.

OpenCV fills what is missing of a JPEG with grey, and takes as much memory as a PNG claims to need.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress
from typing import NamedTuple

from PIL import Image

from pfseg.errors import DataError

Bytes = bytes | mmap.mmap
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of JPEG with the size; the three others are tables
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of PNG by colour type; a palette stands for colours
_ORIENTATION = 0x0112  # tag of EXIF


class Header(NamedTuple):
    """Rows and columns as they are stored, the EXIF orientation (1: as stored), and what else there is to know."""

    height: int
    width: int
    orientation: int = 1
    palette: tuple[int, ...] = ()  # red, green, blue of each value
    channels: int = 3
    bits: int = 8  # of each channel
    grey_step: int = 1  # OpenCV multiplies the values of a grey PNG of less than 8 bits with it: 1 bit gives 0 and 255


def read_header(data: Bytes, *, whole: bool = True) -> Header | None:
    """Examine the content of a file; None for other formats. Unless `whole`, its end is not looked for.

    Raises:
        DataError: it ends too early, or is damaged; says how, to follow the name of the file.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _read_png(data, b"IEND" if whole else b"IDAT")
        return _read_jpeg(data, whole) if data[:2] == b"\xff\xd8" else None
    except struct.error:
        raise DataError(f"is truncated (its head is incomplete in {len(data)} bytes)") from None


def _read_png(data: Bytes, last: bytes) -> Header:
    palette: tuple[int, ...] = ()
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    step = 255 // ((1 << depth) - 1) if kind == 0 and 0 < depth < 8 else 1
    place, name, orientation = 8, b"", 1
    while name != last:
        if place + 12 > len(data):
            raise DataError(f"is truncated (its end marker is missing after {len(data)} bytes)")
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if place + 12 + length > len(data):
            raise DataError(
                f"is truncated or damaged (its part {name.decode('latin-1')} claims {length:,} bytes, "
                f"{max(0, len(data) - place - 12):,} follow)"
            )
        content = slice(place + 8, place + 8 + length)
        if name == b"eXIf":
            orientation = _orientation(data[content])
        elif name == b"PLTE":
            palette = tuple(data[content]) if kind == 3 else ()
        place += 12 + length
    return Header(height, width, orientation, palette, _CHANNELS.get(kind, 3), depth, step)


def _read_jpeg(data: Bytes, whole: bool) -> Header | None:
    place, orientation = 2, 1
    size: tuple[int, int, int] | None = None
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        marker = data[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker in _FRAMES:
            height, width, channels = struct.unpack_from(">HHB", data, place + 5)
            size = height, width, channels
        elif marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _orientation(data[place + 10 : place + 2 + struct.unpack_from(">H", data, place + 2)[0]])
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    # A thumbnail in the head has an end marker of its own: only what follows the image's first scan counts.
    if whole and data.find(b"\xff\xd9", place) < 0:
        raise DataError(f"is truncated (its end marker is missing after {len(data)} bytes)")
    return Header(*size[:2], orientation, channels=size[2]) if size else None


def _orientation(exif: bytes) -> int:
    with suppress(Exception):  # whatever Pillow makes of a damaged block: the pixels don't depend on it
        tags = Image.Exif()
        tags.load(b"Exif\0\0" + exif)
        value = tags.get(_ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    return 1
