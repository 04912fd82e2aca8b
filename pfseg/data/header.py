"""Size and channels of an image from its header: PNG, JPEG and TIFF, without decoding any pixel."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers; the three others are tables
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette stands for colours
_WIDTH, _HEIGHT, _CHANNELS, _PLANES = 256, 257, 277, 284  # tags of TIFF


class Header(NamedTuple):
    """Rows, columns and channels of an image as it is stored; whether a TIFF has the channels one after another."""

    height: int
    width: int
    channels: int
    planar: bool = False


def header_of(path: Path) -> Header | None:
    """Read the header of a file; None also if it can't be opened."""
    with suppress(OSError), path.open("rb") as file:
        return read_header(file)
    return None


def read_header(file: BinaryIO) -> Header | None:
    """Read the header of an image file, open at its beginning; None if it is no PNG, JPEG or TIFF, or is damaged."""
    start = file.read(26)
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height, _, kind = struct.unpack_from(">IIBB", start, 16)
            return Header(height, width, _PNG_CHANNELS[kind])
        if start.startswith(b"\xff\xd8"):
            return _read_jpeg(file)
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _read_tiff(file, start)
    except (struct.error, KeyError):
        pass
    return None


def _read_jpeg(file: BinaryIO) -> Header | None:
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        if head[1] in _JPEG_SIZES:
            _, height, width, channels = struct.unpack(">BHHB", file.read(6))
            return Header(height, width, channels)
        if head[1] == 0xFF:  # padding before a marker
            file.seek(-3, 1)
        else:
            file.seek(struct.unpack(">H", head[2:])[0] - 2, 1)
    return None


def _read_tiff(file: BinaryIO, start: bytes) -> Header:
    """Read the first directory; BigTIFF (version 43) has 64-bit counts and offsets."""
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", start, 2)[0] == 43
    file.seek(struct.unpack_from(f"{order}Q" if big else f"{order}I", start, 8 if big else 4)[0])
    count = struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))[0]
    size = 20 if big else 12
    entries = file.read(size * min(count, 4096))
    values = {_CHANNELS: 1, _PLANES: 1}
    for place in range(0, len(entries), size):
        tag, kind = struct.unpack_from(f"{order}HH", entries, place)
        if tag in (_WIDTH, _HEIGHT, _CHANNELS, _PLANES):
            form = {3: "H", 4: "I", 16: "Q"}[kind]
            values[tag] = struct.unpack_from(f"{order}{form}", entries, place + (12 if big else 8))[0]
    return Header(values[_HEIGHT], values[_WIDTH], values[_CHANNELS], values[_PLANES] == 2)
