"""Reading image and mask files, and turning what masks hold into labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, class_ids, parse_color
from pfseg.errors import ConfigError, DataError

_UNKNOWN = 254
_AGAIN = "copy it again, or leave damaged files out with dataset.on_error=skip"


def read_image(path: Path) -> np.ndarray:
    """Read an image as it is stored, whatever its EXIF orientation.

    Returns:
        (H, W, 3) uint8 RGB; grey images are repeated, 16 bits reduced to 8.

    Raises:
        DataError: missing, empty, truncated or no image.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.cvtColor(_decode(path, _read_bytes(path), flags), cv2.COLOR_BGR2RGB)


class MaskReader:
    """Reads masks of one class table by a table look-up.

    Args:
        classes: the class table.
        ignore: colours (hex or list) and ids that mean "no class".

    Raises:
        ConfigError: an entry of `ignore` is a class's own colour or id.
    """

    def __init__(self, classes: Sequence[ClassInfo], ignore: Sequence[Any] = ()) -> None:
        """Check the entries of `ignore` against the class table."""
        self.classes = tuple(classes)
        self.ids = {identity: label for label, identity in enumerate(class_ids(classes))}
        self.colors = {info.color: label for label, info in enumerate(classes)}
        for entry in ignore:
            if isinstance(entry, int):
                label = self.ids.setdefault(entry, IGNORE)
            else:
                label = self.colors.setdefault(parse_color(entry, where="config: dataset.ignore"), IGNORE)
            if label != IGNORE:
                name = self.classes[label].name
                raise ConfigError(f"{entry!r} of `ignore` is class {name}; drop either (config: dataset.ignore)")
        self.ids.setdefault(IGNORE, IGNORE)

    def read(self, path: Path, name: str) -> tuple[np.ndarray, str | None]:
        """Read one mask: single-channel ids, a palette PNG or RGB colours.

        Args:
            path: the file.
            name: how messages call it.

        Returns:
            (H, W) uint8 labels or 255, and a warning if colours outside the class table became 255.

        Raises:
            DataError: unreadable, or an id outside the class table.
        """
        data = _read_bytes(path)
        pixels = _decode(path, data, cv2.IMREAD_UNCHANGED)
        if pixels.ndim == 2:
            return self._from_ids(pixels // _grey_step(data), name), None
        if pixels.dtype != np.uint8:
            raise DataError(f"{name} has colours of {pixels.dtype}; expected 8 bits per channel: convert the masks")
        return self._from_colors(pixels, name)

    def _from_ids(self, pixels: np.ndarray, name: str) -> np.ndarray:
        if pixels.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{name} has values of {pixels.dtype}; expected 8 or 16 bits without sign")
        table = np.full(np.iinfo(pixels.dtype).max + 1, _UNKNOWN, dtype=np.uint8)
        for identity, label in self.ids.items():
            if identity < len(table):
                table[identity] = label
        mask = table[pixels]
        unknown = mask == _UNKNOWN
        if unknown.any():
            value = int(pixels[unknown].min())
            known = ", ".join(
                f"{identity} {self.classes[label].name if label != IGNORE else 'ignore'}"
                for identity, label in sorted(self.ids.items())
            )
            raise DataError(
                f"{name} has the value {value} (values outside the class table: {_percent(unknown)} of its pixels); "
                f"the table has {known}; add a class with `id: {value}` or list it under `ignore` "
                "(config: dataset.classes, dataset.ignore)"
            )
        return mask

    def _from_colors(self, pixels: np.ndarray, name: str) -> tuple[np.ndarray, str | None]:
        if pixels.shape[2] == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
        # B, G, R, A in memory are one little-endian number whose low 24 bits are 0xRRGGBB.
        codes = np.ascontiguousarray(pixels).view("<u4")[..., 0] & 0xFFFFFF
        mask = np.take(self._color_table, codes)
        unknown = mask == _UNKNOWN
        if not unknown.any():
            return mask, None
        found, counts = np.unique(codes[unknown], return_counts=True)
        some = ", ".join(f"{found[place]:06X}" for place in np.argsort(-counts, kind="stable")[:3])
        mask[unknown] = IGNORE
        return mask, (
            f"{name}: {_percent(unknown)} of its pixels have colours outside the class table "
            f"({len(found)} in all, most often {some}) and are ignored (config: dataset.classes, dataset.ignore)"
        )

    @cached_property
    def _color_table(self) -> np.ndarray:
        table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
        for (red, green, blue), label in self.colors.items():
            table[red << 16 | green << 8 | blue] = label
        return table


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {_AGAIN}") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes); {_AGAIN}")
    if _is_truncated(data):
        raise DataError(f"{path} is truncated (its end marker is missing after {len(data)} bytes); {_AGAIN}")
    return data


def _decode(path: Path, data: bytes, flags: int) -> np.ndarray:
    """Decode from memory: OpenCV's own file access fails on some non-ASCII paths."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {str(error).strip().splitlines()[-1]}; {_AGAIN}") from error
    if pixels is None:
        raise DataError(f"{path} cannot be decoded as an image ({len(data)} bytes); {_AGAIN}")
    return pixels


def _is_truncated(data: bytes) -> bool:
    """Whether the end marker of a JPEG or PNG is missing: OpenCV fills what is missing of a JPEG with grey."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-4096:]
    if not data.startswith(b"\xff\xd8"):
        return False
    # A thumbnail in the header has an end marker of its own: only what follows the image's first scan counts.
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big") if data[place + 1] != 0xFF else 1
    return data.find(b"\xff\xd9", place) < 0


def _grey_step(data: bytes) -> int:
    """What OpenCV multiplies the values of a grey PNG of less than 8 bits with: 1 bit gives 0 and 255."""
    depth, kind = data[24:26] if data.startswith(b"\x89PNG") else (8, 0)
    return 255 // ((1 << depth) - 1) if kind == 0 and depth < 8 else 1


def _percent(where: np.ndarray) -> str:
    return f"{100 * float(where.mean()):.3g} %"
