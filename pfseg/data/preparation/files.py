"""Single patch files: written in one step, and checked."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from pfseg.data.base import IGNORE
from pfseg.data.header import read_header
from pfseg.errors import WriteError
from pfseg.files import PART

_EXACT = 1 << 24  # OpenCV's histogram counts in float32, which is exact up to here
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: of libraries that don't say
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_END = b"IEND\xaeB`\x82"


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or none: under a temporary name first, `.<name>.part`.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
    """
    part = path.with_name(f".{path.name}{PART}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that cannot be written."""
    remedy = "make room" if error.errno in _FULL else "put that right"
    if error.errno in _FORBIDDEN:
        remedy = "allow writing there or choose another folder"
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; what was written is kept: {remedy}, then give the same "
        "command again to go on"
    )


def png_fault(path: Path, shape: tuple[int, int]) -> str | None:
    """What is wrong with a PNG file by its size and end marker alone; None if nothing is."""
    try:
        with path.open("rb") as file:
            header = read_header(file)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(_END)))
            end = file.read()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if header is None or end != _END:
        return "is empty or truncated"
    if (header.height, header.width) != shape:
        return f"has {header.width}x{header.height} px, expected {shape[1]}x{shape[0]}"
    return None


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Pixels of each value of (H, W) uint8: (256,) int64."""
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, _EXACT // max(1, labels.shape[1]))
    for top in range(0, len(labels), rows):
        part = labels[top : top + rows]
        counts += cv2.calcHist([part], [0], None, [256], [0, 256])[:, 0].astype(np.int64)
    return counts


def mask_counts(path: Path, ids: Sequence[int], ignore: int | None) -> np.ndarray:
    """Decode a written mask and count its labels.

    Args:
        path: a PNG of class ids.
        ids: value of each class.
        ignore: value of "no class"; None if masks have none.

    Returns:
        (256,) int64 as `count_labels` gives it; all 0 if the file is unreadable or has other values than these.
    """
    counts = np.zeros(256, dtype=np.int64)
    try:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):  # imdecode raises for an empty file
        return counts
    if pixels is None or pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        return counts
    found = count_labels(pixels) if pixels.dtype == np.uint8 else np.bincount(pixels.ravel(), minlength=65536)
    values = [*enumerate(ids), *([(IGNORE, ignore)] if ignore is not None else [])]
    known = {label: int(found[value]) for label, value in values if value < len(found)}
    if sum(known.values()) == pixels.size:
        counts[list(known)] = list(known.values())
    return counts
