from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from data.fakes import png
from PIL import Image

from pfseg.data.header import Header, read_header
from pfseg.errors import DataError


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("shape", [(7, 300), (300, 7, 3)])
def test_size(suffix, shape):
    data = cv2.imencode(suffix, np.zeros(shape, np.uint8))[1].tobytes()
    assert read_header(data) == Header(*shape[:2], channels=1 if len(shape) == 2 else 3)


def test_depth_and_palette():
    data = cv2.imencode(".png", np.zeros((4, 5, 4), np.uint16))[1].tobytes()
    assert read_header(data) == Header(4, 5, channels=4, bits=16)
    assert read_header(png(np.zeros((4, 5), int), 2, 0)) == Header(4, 5, channels=1, bits=2, grey_step=85)
    assert read_header(png(np.zeros((4, 5), int), 1, 3, bytes(range(6)))) == Header(4, 5, palette=(*range(6),), bits=1)


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
@pytest.mark.parametrize("orientation", [1, 6, 9])
def test_orientation(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a", suffix, exif=exif)
    header = read_header((tmp_path / "a").read_bytes())
    assert header is not None
    assert header.orientation == (orientation if orientation < 9 else 1)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("size", [8, 12, 21, 100])
def test_cut_files(suffix, size):
    data = cv2.imencode(suffix, np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8))[1].tobytes()
    with pytest.raises(DataError, match=r"^is truncated"):
        read_header(data[:size])


def test_a_part_that_claims_more_than_there_is():
    data = png(np.zeros((4, 5), int), 8, 0)
    claim = struct.pack(">I", 2**31 - 1) + b"IDAT"
    at = data.index(b"IDAT") - 4
    with pytest.raises(DataError, match=r"^is truncated or damaged \(its part IDAT claims 2,147,483,647 bytes, \d+ fo"):
        read_header(data[:at] + claim + data[at + 8 :])


@pytest.mark.parametrize("data", [b"", b"BM" + bytes(100), b"II*\0" + bytes(100)])
def test_other_files(data):
    assert read_header(data) is None
