"""Single patch files: written in one step, and checked."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2
import numpy as np

from pfseg.data.header import read_header
from pfseg.errors import WriteError
from pfseg.files import replacing

_EXACT = 1 << 24  # OpenCV's histogram counts in float32, which is exact up to here
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: of libraries that give no number
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_END = b"IEND\xaeB`\x82"


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that cannot be written."""
    remedy = "make room" if error.errno in _FULL else "put that right"
    if error.errno in _FORBIDDEN:
        remedy = "allow writing there or choose another folder"
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; what was written is kept: {remedy}, then give the same "
        "command again to continue"
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
