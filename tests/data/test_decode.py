from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from data.fakes import COLORS, write

from pfseg.data.base import ClassInfo
from pfseg.data.decode import MaskReader, read_image
from pfseg.errors import ConfigError, DataError

TABLE = (ClassInfo("roof", (0x3C, 0x10, 0x98)), ClassInfo("road", (110, 193, 228)))
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8), (90, 80))


def png(pixels: np.ndarray, depth: int, kind: int, palette: bytes = b"") -> bytes:
    """A PNG of packed rows, which OpenCV cannot write itself."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = (pixels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(pixels), -1).astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    plte = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + plte + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_image_is_rgb(tmp_path, suffix):
    path = tmp_path / f"Übung 1{suffix}"
    write(path, PICTURE)
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_grey_and_16_bit_images_become_rgb_of_8_bits(tmp_path):
    write(tmp_path / "a.png", PICTURE[..., 0])
    write(tmp_path / "b.png", PICTURE[..., 0].astype(np.uint16) * 256)
    for name in ("a.png", "b.png"):
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.repeat(PICTURE[..., :1], 3, axis=2))


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_files_are_named(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    write(path, PICTURE)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=rf"cut\{suffix} is truncated .*on_error=skip"):
        read_image(path)


def test_end_marker_of_a_thumbnail_does_not_count(tmp_path):
    path = tmp_path / "cut.jpg"
    write(path, PICTURE)
    data = path.read_bytes()
    thumbnail = b"\xff\xd8 small \xff\xd9"
    header = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(header + data[2:])
    assert read_image(path).shape == PICTURE.shape
    path.write_bytes(header + data[2:-40])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


def test_what_follows_the_end_marker_does_no_harm(tmp_path):
    path = tmp_path / "long.jpg"
    write(path, PICTURE)
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    assert read_image(path).shape == PICTURE.shape


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty \\(0 bytes\\)"), (b"hello", "cannot be decoded"), (None, "cannot be read")]
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"x.png {message}"):
        read_image(path)


def test_three_codings_give_the_same_labels(tmp_path):
    mask = np.array([[0, 1, 1], [1, 0, 255]], dtype=np.uint8)
    write(tmp_path / "ids.png", mask)
    write(tmp_path / "ids16.tif", mask.astype(np.uint16))
    colors = np.concatenate([COLORS, [[0x9B, 0x9B, 0x9B]]]).astype(np.uint8)
    index = np.where(mask == 255, 2, mask)
    write(tmp_path / "colors.png", colors[index])
    write(tmp_path / "alpha.png", PICTURE)  # overwritten below; only its folder is needed
    rgba = np.dstack([colors[index][..., ::-1], np.full(mask.shape, 7, np.uint8)])
    (tmp_path / "alpha.png").write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    (tmp_path / "palette.png").write_bytes(png(index, 2, 3, colors.tobytes()))
    reader = MaskReader(TABLE, ignore=["9B9B9B"])
    for name in ("ids.png", "ids16.tif", "colors.png", "alpha.png", "palette.png"):
        found, warning = reader.read(tmp_path / name, name)
        np.testing.assert_array_equal(found, mask, err_msg=name)
        assert found.dtype == np.uint8
        assert warning is None


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_ids_of_less_than_8_bits_keep_their_values(tmp_path, depth):
    mask = np.array([[0, 1, 0], [1, 1, 0]])
    (tmp_path / "a.png").write_bytes(png(mask, depth, 0))
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / "a.png", "a")[0], mask)


def test_ids_by_table(tmp_path):
    classes = (ClassInfo("sea", (0, 0, 0), 0), ClassInfo("ice", (1, 1, 1), 255))
    write(tmp_path / "a.png", np.array([[0, 255, 9]], dtype=np.uint8))
    mask, _ = MaskReader(classes, ignore=[9]).read(tmp_path / "a.png", "a.png")
    assert mask.tolist() == [[0, 1, 255]]


def test_unknown_colours_are_ignored_and_reported(tmp_path):
    pixels = np.broadcast_to(COLORS[0], (10, 10, 3)).copy()
    pixels[0, :3], pixels[0, 3] = (1, 2, 3), (0xAA, 0xBB, 0xCC)
    write(tmp_path / "a.png", pixels)
    mask, warning = MaskReader(TABLE).read(tmp_path / "a.png", "t/a.png")
    assert (mask == 255).sum() == 4
    assert (mask[1:] == 0).all()
    assert warning is not None
    assert warning.startswith("t/a.png: 4 % of its pixels have colours outside the class table (2 in all")
    assert "most often 010203, AABBCC" in warning


def test_unknown_ids_are_an_error(tmp_path):
    write(tmp_path / "a.png", np.array([[0, 1, 7, 8]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"t/a.png has the value 7 .*50 % .* 0 roof, 1 road, 255 ignore; .*`id: 7`"):
        MaskReader(TABLE).read(tmp_path / "a.png", "t/a.png")


def test_masks_of_unfit_types(tmp_path):
    write(tmp_path / "a.png", COLORS[np.zeros((2, 2), int)].astype(np.uint16))
    with pytest.raises(DataError, match="a has colours of uint16; expected 8 bits"):
        MaskReader(TABLE).read(tmp_path / "a.png", "a")
    write(tmp_path / "b.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="b has values of float32"):
        MaskReader(TABLE).read(tmp_path / "b.tif", "b")


@pytest.mark.parametrize("entry", ["3C1098", 1])
def test_a_class_cannot_be_ignored(entry):
    with pytest.raises(ConfigError, match=r"of `ignore` is class (roof|road); drop either"):
        MaskReader(TABLE, ignore=[entry])
