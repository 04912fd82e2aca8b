"""Images as networks see them, of every kind of file."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio.shutil
from data.fakes import png, tif, write
from PIL import Image as Pillow
from PIL import ImageOps
from rasterio.enums import ColorInterp

from pfseg.data.preparation.png import PngWriter
from pfseg.data.reader import ImageReader, even_contrast
from pfseg.data.sources import shape_of
from pfseg.errors import DataError

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8), (90, 80))


def read_image(path: Path, bands: Any = None, stretch: Any = None) -> np.ndarray:
    return ImageReader(bands, stretch).read(path)


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
    with pytest.raises(DataError, match=rf"cut\{suffix} is truncated .*; copy it again$"):
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
    with pytest.raises(DataError, match=r"has 4 bands \(red, .*\), but bands=\[4, 1, 2\] asks for band 4.*dataset"):
        read_image(path, bands=[4, 1, 2])


def test_bands_of_a_grey_image(tmp_path):
    write(tmp_path / "a.png", PICTURE[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", bands=[0, 0, 0]), PICTURE[..., [0, 0, 0]])
    with pytest.raises(DataError, match=r"has 1 band \(gray\), but bands=\[0, 1, 2\] asks for band 2"):
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
    with pytest.raises(
        DataError, match=r"a.tif has values of float32, from 0 to 0; .*stretch=\[2,98\] .*\(config: dataset.stretch\)"
    ):
        read_image(tmp_path / "a.tif")


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


RGB = planes(PICTURE)


def notes(path: Path, **how: Any) -> list[str]:
    reader = ImageReader(**how)
    reader.read(path)
    reader.read(path)  # each is told once
    return [str(note) for note in reader.pop_notes()]


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_infrared_that_is_tagged_as_alpha_is_data(tmp_path, interleave):
    """As of NAIP: GDAL tags the fourth of four bands of 8 bits as alpha."""
    infrared = 255 - RGB[:1]
    infrared[:, :4] = 0
    tif(tmp_path / "a.tif", np.concatenate([RGB, infrared]), interleave=interleave, photometric="rgb", alpha="yes")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), PICTURE)
    (note,) = notes(tmp_path / "a.tif")
    assert re.search(r"a.tif has a band 3 that is tagged as alpha, but \d+ % of its values .* taken for data", note)
    stored = np.concatenate([infrared, RGB[:2]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", [3, 0, 1]), np.moveaxis(stored, 0, 2))
    assert not notes(tmp_path / "a.tif", bands=[3, 0, 1])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_transparency_is_no_data_and_leaves_colours_alone(tmp_path, kind):
    alpha = np.full_like(RGB[:1], np.iinfo(kind).max, kind)
    alpha[:, :20] = 0
    scale = np.iinfo(kind).max // 255
    tif(tmp_path / "a.tif", np.concatenate([RGB.astype(kind) * scale, alpha]), photometric="rgb", alpha="yes")
    expected = PICTURE.copy()
    expected[:20] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    with ImageReader().open(tmp_path / "a.tif") as image:
        valid = image.read(10, 30)[1]
        assert valid is not None and not valid[:10].any() and valid[10:].all()
    kept = ImageReader(nodata=False)
    np.testing.assert_array_equal(kept.read(tmp_path / "a.tif"), PICTURE)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "cmyk", "itulab"])
def test_photometric_tags_change_no_value(tmp_path, photometric):
    """GF-2 has four bands tagged as CMYK, which GDAL and libtiff would convert."""
    count = {"miniswhite": 1, "minisblack": 1, "cmyk": 4}.get(photometric, 3)
    bands = np.concatenate([RGB, 255 - RGB[:1]])[:count]
    tif(tmp_path / "a.tif", bands, photometric=photometric)
    how = [2, 1, 0] if count >= 3 else None
    expected = np.moveaxis(bands[[2, 1, 0] if count >= 3 else [0, 0, 0]], 0, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", how), expected)


def test_cmyk_without_bands_is_refused(tmp_path):
    tif(tmp_path / "a.tif", np.concatenate([RGB, RGB[:1]]), photometric="cmyk")
    with pytest.raises(DataError, match=r"has 4 bands \(cyan, magenta, yellow, black\); say which are red, green"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("more", [0, 1, 5])
def test_tagged_colours_in_any_order(tmp_path, order, more):
    """As of PlanetScope: blue, green, red, infrared."""
    kinds = [(ColorInterp.red, ColorInterp.green, ColorInterp.blue)[band] for band in order]
    bands = np.concatenate([RGB[list(order)], np.repeat(RGB[:1] // 2, more, 0)])
    tif(tmp_path / "a.tif", bands, [*kinds, *[ColorInterp.undefined] * more], photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), PICTURE)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_a_palette_is_its_colours(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 5, (1, 30, 40)).astype(kind)
    colors = {value: (9 * value, 200 - value, 50 + value) for value in range(5)}
    tif(tmp_path / "a.tif", values, photometric="palette", palette=colors)
    expected = np.array(list(colors.values()), np.uint8)[values[0]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", [2, 0, 0]), expected[..., [2, 0, 0]])
    tif(tmp_path / "a.tif", values, photometric="palette", palette=colors, nodata=3)
    expected[values[0] == 3] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_untagged_bands_have_to_be_named(tmp_path, count):
    bands = np.stack([RGB[band % 3] for band in range(count)])
    tif(tmp_path / "a.tif", bands, photometric="minisblack")
    with pytest.raises(DataError, match=rf"has {count} bands \(gray, .*\); say which .*bands=\[2,1,0\] \(config: dat"):
        read_image(tmp_path / "a.tif")
    every = read_image(tmp_path / "a.tif", [*range(count)])
    np.testing.assert_array_equal(every, np.moveaxis(bands, 0, 2))


@pytest.mark.parametrize(
    ("kind", "nodata"), [("int16", -9999), ("uint16", 0), ("float32", -3.4e38), ("float64", np.nan)]
)
@pytest.mark.parametrize("mask", [False, True])
def test_stretch_does_not_count_what_holds_no_data(tmp_path, kind, nodata, mask):
    pixels = (RGB.astype(np.int16) * 3 + 100).astype(kind)
    valid = np.ones(RGB.shape[1:], bool)
    valid[:30, 20:] = False
    pixels[:, ~valid] = nodata
    given = {"mask": valid} if mask else {"nodata": nodata}
    tif(tmp_path / "a.tif", pixels, **given)
    image = read_image(tmp_path / "a.tif", stretch=[0, 100])
    low, high = (edge(pixels[:, valid].astype(float), axis=1) for edge in (np.min, np.max))
    scaled = ((np.moveaxis(pixels, 0, 2).astype(float)[valid] - low) * 255 / (high - low)).round()
    np.testing.assert_array_equal(image[valid], scaled)
    assert not image[~valid].any()


def test_nan_and_infinity_hold_no_data(tmp_path):
    pixels = RGB.astype(np.float32)
    pixels[:, 0, 0], pixels[0, 1, 1], pixels[:, 2, 2] = np.nan, np.nan, np.inf
    tif(tmp_path / "a.tif", pixels)
    with ImageReader(stretch={"range": [0, 255]}).open(tmp_path / "a.tif") as image:
        found, valid = image.read(0, 4)
    assert valid is not None and not valid[0, 0] and valid[1, 1] and not valid[2, 2] and (~valid).sum() == 2
    assert found[1, 1].tolist() == [0, *PICTURE[1, 1, 1:]]


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "int64", "float32", "float64"])
def test_types_that_say_no_range_are_refused_or_stretched(tmp_path, kind):
    pixels = (RGB // 2).astype(kind)
    tif(tmp_path / "a.tif", pixels)
    low, high = pixels.min(), pixels.max()
    with pytest.raises(DataError, match=rf"values of {kind}, from {low:g} to {high:g}; .*range:\[{low:g},{high:g}\]"):
        read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", stretch={"range": [0, 255]}), PICTURE // 2)
    pairs = {"range": [[0, 255], [0, 127.5], [0, 255]]}
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", stretch=pairs)[..., 1], PICTURE[..., 1] // 2 * 2)
    with pytest.raises(DataError, match="read by 3 bands, but stretch has 2 ranges"):
        read_image(tmp_path / "a.tif", stretch={"range": [[0, 1], [0, 1]]})


def test_complex_values_are_refused(tmp_path):
    tif(tmp_path / "a.tif", RGB.astype(np.complex64))
    with pytest.raises(DataError, match=r"a.tif has complex values of complex64; expected real ones"):
        read_image(tmp_path / "a.tif", stretch=[2, 98])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_use_the_full_range(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 1 << bits, (1, 30, 40)).astype(np.uint8)
    tif(tmp_path / "a.tif", values, nbits=bits)
    (tmp_path / "b.png").write_bytes(png(values[0], bits, 0))
    expected = np.repeat(values[0][..., None] * (255 // ((1 << bits) - 1)), 3, axis=2)
    for name in ("a.tif", "b.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_dark_images_of_16_bits_are_told_once(tmp_path):
    """Reflectance of 0 to 10,000 becomes 40 of 256 grey levels."""
    tif(tmp_path / "a.tif", RGB.astype(np.uint16) * 10)
    (note,) = notes(tmp_path / "a.tif")
    assert re.search(r"a.tif has 16 bits, but 99 % of its values are at most 2\d+, .*10 of 256 grey levels", note)
    assert not notes(tmp_path / "a.tif", stretch={"range": [0, 2550]})
    tif(tmp_path / "a.tif", RGB.astype(np.uint16) * 257)
    assert not notes(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Pillow.fromarray(PICTURE).save(path, suffix, exif=exif, quality=100, subsampling=0)
    with Pillow.open(path) as file:
        upright = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    reader = ImageReader()
    assert np.abs(reader.read(path).astype(int) - upright).max() <= 4
    assert f"EXIF orientation {orientation}, and is turned upright" in reader.pop_notes()[0]
    reader = ImageReader()
    assert np.abs(reader.read(path, PICTURE.shape[:2]).astype(int) - PICTURE).max() <= 8
    assert "is left as it is stored, as its mask is" in reader.pop_notes()[0]
    if orientation > 4:
        assert reader.read(path, upright.shape[:2]).shape == upright.shape


@pytest.mark.parametrize(("compress", "share"), [("deflate", 0.7), ("lzw", 0.5)])
def test_damaged_tiffs_are_refused(tmp_path, compress, share):
    """Of single flipped bits GDAL finds most; none may end in anything but an image or an error that names the file."""
    rng, refused = np.random.default_rng(0), 0
    bands = np.kron(rng.integers(0, 3, (1, 20, 20)), np.ones((1, 16, 16), int)).astype(np.uint8)
    tif(tmp_path / "a.tif", bands, compress=compress)
    data = (tmp_path / "a.tif").read_bytes()
    for place in rng.integers(400, len(data), 100):
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "b.tif").write_bytes(broken)
        try:
            read_image(tmp_path / "b.tif")
        except DataError as error:
            refused += 1
            assert "b.tif" in str(error) and "\n" not in str(error)
    assert refused >= 100 * share


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
def test_a_tiff_with_fewer_rows_than_it_claims(tmp_path, compress):
    tif(tmp_path / "a.tif", RGB, compress=compress)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 257:
            struct.pack_into("<H", data, entry + 8, 4000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"a.tif cannot be read: .*copy it again"):
        read_image(tmp_path / "a.tif")


def test_a_png_that_claims_much_takes_no_memory(tmp_path):
    """A part that claims 2 GiB in a file of some 200 bytes."""
    data = png(np.zeros((4, 5), int), 8, 0)
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + struct.pack(">I", 2**31 - 1) + data[at + 4 :])
    with pytest.raises(DataError, match=r"a.png is truncated or damaged \(its part IDAT claims 2,147,483,647 bytes"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_names_that_the_system_does_not_take(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"a{{300}}{suffix} cannot be read: "):
        read_image(tmp_path / f"{'a' * 300}{suffix}")


@pytest.mark.slow
def test_more_pixels_than_opencv_takes(tmp_path):
    """Such a PNG is read by GDAL, a few rows at a time."""
    side = 33_000
    with open(tmp_path / "a.png", "wb") as file:
        writer = PngWriter(file, (side, side), channels=1, dtype=np.dtype(np.uint8))
        for top in range(0, side, 1000):
            writer.write(np.full((1000, side), top // 1000, np.uint8))
        writer.close()
    assert shape_of(tmp_path / "a.png") == (side, side)
    with ImageReader().open(tmp_path / "a.png") as image:
        assert image.read(2000, 2002)[0].tolist()[0][:2] == [[2, 2, 2]] * 2


@pytest.mark.parametrize("suffix", [".jp2", ".vrt", ".TIFF"])
def test_other_geographic_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".vrt":
        tif(tmp_path / "b.tif", RGB)
        with warnings.catch_warnings(action="ignore"):
            rasterio.shutil.copy(tmp_path / "b.tif", path, driver="VRT")
    else:
        tif(path, RGB, **({"driver": "JP2OpenJPEG", "quality": 100, "reversible": "yes"} if suffix == ".jp2" else {}))
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_a_fault_nobody_thought_of_names_the_file(tmp_path, monkeypatch):
    tif(tmp_path / "a.tif", RGB)
    monkeypatch.setattr("pfseg.data.reader._choose_bands", lambda *_: {}["unforeseen"])
    with pytest.raises(DataError, match=r"a.tif cannot be read: 'unforeseen'"):
        read_image(tmp_path / "a.tif")


def test_libraries_write_nothing_by_themselves(tmp_path, capfd):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\x09" + bytes(24)) * 8)  # PNG has no filter 9, of which libpng writes
    path = tmp_path / "odd.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with suppress(DataError):
        read_image(path)
    assert capfd.readouterr().err == ""
    os.write(2, b"as before")
    assert capfd.readouterr().err == "as before"
