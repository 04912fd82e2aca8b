from __future__ import annotations

import importlib.util
import struct
import zlib

import cv2
import numpy as np
import pytest
from data.fakes import COLORS, write

from pfseg.data.base import ClassInfo
from pfseg.data.decode import MaskReader, even_contrast, read_image
from pfseg.errors import ConfigError, DataError

TABLE = (ClassInfo("roof", (0x3C, 0x10, 0x98)), ClassInfo("road", (110, 193, 228)))
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8), (90, 80))


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


def tiff(planes: np.ndarray) -> bytes:
    """An uncompressed TIFF of planes (C, H, W) that lie one after another."""
    count, height, width = planes.shape
    body = planes.tobytes()
    at = 8 + len(body)
    size = planes[0].nbytes
    bits = struct.pack(f"<{count}H", *[8 * planes.itemsize] * count)
    starts = struct.pack(f"<{count}I", *(8 + plane * size for plane in range(count)))
    sizes = struct.pack(f"<{count}I", *[size] * count)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, at), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, count, at + len(bits)), (277, 3, 1, count), (278, 4, 1, height)]
    tags += [(279, 4, count, at + len(bits) + len(starts)), (284, 3, 1, 2)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    end = at + len(bits) + len(starts) + len(sizes)
    return b"II*\0" + struct.pack("<I", end) + body + bits + starts + sizes + directory


def test_alpha_is_dropped_whatever_the_depth(tmp_path):
    rgba = np.dstack([PICTURE[..., ::-1], PICTURE[..., 0]])
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    (tmp_path / "b.png").write_bytes(cv2.imencode(".png", rgba.astype(np.uint16) * 256 + 9)[1].tobytes())
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)
    grey_alpha = np.stack([PICTURE[..., 0], 255 - PICTURE[..., 0]], axis=-1)
    (tmp_path / "c.png").write_bytes(png(grey_alpha.reshape(len(PICTURE), -1), 8, 4, width=PICTURE.shape[1]))
    np.testing.assert_array_equal(read_image(tmp_path / "c.png"), PICTURE[..., [0, 0, 0]])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bands_are_channels_of_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(cv2.imencode(suffix, np.dstack([PICTURE[..., ::-1], PICTURE[..., 0] // 2]))[1].tobytes())
    image = read_image(path, bands=[3, 0, 2])
    np.testing.assert_array_equal(image, np.dstack([PICTURE[..., 0] // 2, PICTURE[..., 0], PICTURE[..., 2]]))
    assert image.flags.c_contiguous
    with pytest.raises(DataError, match=r"has 4 channels, but bands=\[4, 1, 2\] asks for channel 4.*dataset.bands"):
        read_image(path, bands=[4, 1, 2])


def test_bands_of_a_grey_image(tmp_path):
    write(tmp_path / "a.png", PICTURE[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", bands=[0, 0, 0]), PICTURE[..., [0, 0, 0]])
    with pytest.raises(DataError, match=r"has 1 channel, but bands=\[0, 1, 2\] asks for channel 2"):
        read_image(tmp_path / "a.png", bands=[0, 1, 2])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_stretch_maps_percentiles_of_each_channel(tmp_path, kind):
    pixels = np.dstack(
        [np.arange(10000).reshape(100, 100), np.full((100, 100), 7), np.arange(0, 50000, 5).reshape(100, 100)]
    )
    plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1]  # OpenCV's own choice for float loses digits
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", pixels.astype(kind)[..., ::-1], plain)[1].tobytes())
    image = read_image(tmp_path / "a.tif", stretch=[2, 98])
    for channel in (0, 2):
        assert (image[..., channel] == 0).mean() == pytest.approx(0.02, abs=0.005)
        assert (image[..., channel] == 255).mean() == pytest.approx(0.02, abs=0.005)
        assert abs(int(image[50, 0, channel]) - 128) <= 1
    assert not image[..., 1].any()


def test_stretch_leaves_8_bits_alone_and_bears_gaps(tmp_path):
    write(tmp_path / "a.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", stretch=[10, 90]), PICTURE)
    pixels = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    pixels[0, 0] = np.nan
    write(tmp_path / "b.tif", pixels)
    image = read_image(tmp_path / "b.tif", stretch=[0, 100])
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[-1, -1].tolist() == [255, 255, 255]


def test_even_contrast_keeps_the_mean():
    hazy = np.random.default_rng(0).normal(100, 30, (60, 50, 3)).clip(0, 255).astype(np.uint8)
    even = even_contrast(hazy, 50)
    assert even.std() == pytest.approx(50, abs=1.5)  # but for what black and white cut off
    assert even.mean() == pytest.approx(hazy.mean(), abs=1)
    assert even_contrast(hazy, 10).std() == pytest.approx(15, abs=0.5)  # the factor is 0.5 at least
    assert even_contrast(hazy, None) is hazy
    np.testing.assert_array_equal(even_contrast(np.full((4, 4, 3), 9, np.uint8), 50), 9)


def test_other_depths_need_a_stretch(tmp_path):
    write(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match=r"a.tif has values of float32; .*stretch=\[2,98\] \(config: dataset.stretch\)"):
        read_image(tmp_path / "a.tif")


def test_tiff_that_opencv_does_not_read_in_full(tmp_path):
    """Six channels it refuses; three of 16 bits that lie one after another it takes for pixels, without a word."""
    planes = np.stack([np.moveaxis(PICTURE, 2, 0)[plane % 3] // (1 + plane // 3) for plane in range(6)])
    (tmp_path / "a.tif").write_bytes(tiff(planes[:3].astype(np.uint16) * 257))
    (tmp_path / "b.tif").write_bytes(tiff(planes))
    if importlib.util.find_spec("rasterio") is None:
        for name in ("a.tif", "b.tif"):
            with pytest.raises(DataError, match=r"OpenCV cannot decode in full; .* pip install 'pfseg\[geo\]'"):
                read_image(tmp_path / name)
        return
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif", bands=[3, 4, 5]), PICTURE // 2)
    with pytest.raises(DataError, match=r"has 6 channels; say which .*bands=\[2,1,0\] \(config: dataset.bands\)"):
        read_image(tmp_path / "b.tif")
