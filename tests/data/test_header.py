from __future__ import annotations

import struct
from io import BytesIO

import cv2
import numpy as np
import pytest

from pfseg.data.header import Header, read_header


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("shape", [(7, 300), (300, 7, 3)])
def test_size_and_channels(suffix, shape):
    data = cv2.imencode(suffix, np.zeros(shape, np.uint8))[1].tobytes()
    assert read_header(BytesIO(data)) == Header(*shape[:2], 1 if len(shape) == 2 else 3)


def test_alpha_and_16_bits():
    data = cv2.imencode(".png", np.zeros((4, 5, 4), np.uint16))[1].tobytes()
    assert read_header(BytesIO(data)) == Header(4, 5, 4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff(order):
    """Offsets of 64 bits, in either order of bytes; the directory lies at the end."""
    entries = [(256, 4, 70000), (257, 3, 5 << 48 if order == ">" else 5), (277, 3, 6 << 48 if order == ">" else 6)]
    if order == ">":
        entries[0] = (256, 4, 70000 << 32)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 40)
    body = struct.pack(f"{order}Q", 3) + b"".join(struct.pack(f"{order}HHQQ", t, k, 1, v) for t, k, v in entries)
    assert read_header(BytesIO(head.ljust(40, b"\0") + body)) == Header(5, 70000, 6)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("size", [0, 3, 12, 21])
def test_damaged_headers(suffix, size):
    data = cv2.imencode(suffix, np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    assert read_header(BytesIO(data[:size])) is None


def test_other_files():
    assert read_header(BytesIO(b"BM" + bytes(100))) is None
