"""Single patch files: written in one step, and checked."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np

from pfseg import files
from pfseg.errors import WriteError

_EXACT = 1 << 24  # OpenCV's histogram counts in float32, which is exact up to here
_AGAIN = ", then give the same command again to continue; what was written is kept"
_END = b"IEND\xaeB`\x82"


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none; raises WriteError, which tells how to continue."""
    try:
        files.write_atomic(path, data, sync=False)
    except WriteError as error:
        raise WriteError(f"{error}{_AGAIN}") from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error for a file that can't be written, which tells how to continue."""
    return WriteError(f"{files.cannot_write(path, error)}{_AGAIN}")


def png_fault(path: Path, shape: tuple[int, int]) -> str | None:
    """What is wrong with a PNG file by its size and end marker alone; None if nothing is."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(_END)))
            end = file.read()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if len(head) < 24 or end != _END:
        return "is empty or truncated"
    width, height = struct.unpack(">II", head[16:])
    if (height, width) != shape:
        return f"has {width}x{height} px, expected {shape[1]}x{shape[0]}"
    return None


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Pixels of each value of (H, W) uint8: (256,) int64."""
    counts = np.zeros(256, dtype=np.int64)
    rows = max(1, _EXACT // max(1, labels.shape[1]))
    for top in range(0, len(labels), rows):
        part = labels[top : top + rows]
        counts += cv2.calcHist([part], [0], None, [256], [0, 256])[:, 0].astype(np.int64)
    return counts
