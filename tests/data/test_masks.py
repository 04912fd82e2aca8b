"""Masks of every kind of file as labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from data.fakes import COLORS, png, tif, write
from PIL import Image
from rasterio.enums import ColorInterp

from pfseg.data.base import ClassInfo
from pfseg.data.masks import MaskReader
from pfseg.errors import ConfigError, DataError

TABLE = (ClassInfo("roof", (0x3C, 0x10, 0x98)), ClassInfo("road", (110, 193, 228)))
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8), (90, 80))


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
    write(tmp_path / "a.png", COLORS[np.zeros((2, 2), int)].astype(np.uint16) * 256)
    with pytest.raises(DataError, match=r"a has colours of uint16 beyond 0..255: convert it to 8 bits per channel"):
        MaskReader(TABLE).read(tmp_path / "a.png", "a")
    tif(tmp_path / "b.tif", np.array([[[0, 1, 0.25]]], np.float32))
    with pytest.raises(DataError, match=r"b has values that are no whole numbers, such as 0.25 .*: it holds no class"):
        MaskReader(TABLE).read(tmp_path / "b.tif", "b")
    tif(tmp_path / "c.tif", np.zeros((1, 2, 2), np.complex64))
    with pytest.raises(DataError, match=r"c has values of complex64; expected class ids"):
        MaskReader(TABLE).read(tmp_path / "c.tif", "c")


@pytest.mark.parametrize("entry", ["3C1098", 1])
def test_a_class_cannot_be_ignored(entry):
    with pytest.raises(ConfigError, match=r"of `ignore` is class (roof|road); drop either"):
        MaskReader(TABLE, ignore=[entry])


MASK = np.zeros((1, 40, 50), np.uint8)
MASK[:, 10:30, 5:40] = 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_ids_of_any_whole_type(tmp_path, dtype):
    tif(tmp_path / "a.tif", MASK.astype(dtype))
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / "a.tif", "a")[0], MASK[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ids_as_floats(tmp_path, dtype):
    values = MASK.astype(dtype)
    values[0, 0, 0], values[0, 0, 1] = np.nan, -9999
    tif(tmp_path / "a.tif", values, nodata=-9999)
    expected = MASK[0].copy()
    expected[0, :2] = 255
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / "a.tif", "a")[0], expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_ids_of_few_bits_in_a_tiff(tmp_path, bits, photometric):
    tif(tmp_path / "a.tif", MASK, nbits=bits, photometric=photometric)
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / "a.tif", "a")[0], MASK[0])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_ids_of_one_bit_by_pillow(tmp_path, suffix):
    Image.fromarray(MASK[0].astype(bool)).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / f"a{suffix}", "a")[0], MASK[0])


@pytest.mark.parametrize("compress", ["zstd", "lerc", "lzw", "deflate", "packbits"])
def test_ids_of_any_compression(tmp_path, compress):
    tif(tmp_path / "a.tif", MASK, compress=compress)
    np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / "a.tif", "a")[0], MASK[0])


def test_nodata_of_a_mask_has_no_class_unless_the_table_knows_it(tmp_path):
    for name, nodata, values in (("a", 7, (1, 7)), ("b", -1, (1, -1)), ("c", 0, (1, 0))):
        tif(tmp_path / f"{name}.tif", np.array([[values]], np.int16), nodata=nodata)
    reader = MaskReader(TABLE)
    found = [reader.read(tmp_path / f"{name}.tif", name)[0][0].tolist() for name in "abc"]
    assert found == [[1, 255], [1, 255], [1, 0]]


def test_ids_beyond_16_bits_and_below_0(tmp_path):
    tif(tmp_path / "a.tif", np.array([[[0, 1, 70000, -5]]], np.int32))
    np.testing.assert_array_equal(MaskReader(TABLE, [70000, -5]).read(tmp_path / "a.tif", "a")[0], [[0, 1, 255, 255]])
    with pytest.raises(DataError, match=r"a has the value -5 .*50 % .*`id: -5`"):
        MaskReader(TABLE).read(tmp_path / "a.tif", "a")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_palette_is_colours_or_where_none_is_known_ids(tmp_path, suffix):
    def save(name: str, colors: dict[int, tuple[int, ...]]) -> None:
        if suffix == "tif":
            tif(tmp_path / f"{name}.tif", MASK, photometric="palette", palette=colors)
        else:
            (tmp_path / f"{name}.png").write_bytes(png(MASK[0], 8, 3, bytes(sum(colors.values(), ()))))

    save("a", {0: (110, 193, 228), 1: (0x3C, 0x10, 0x98)})
    save("b", {0: (0, 0, 0), 1: (128, 0, 0)})
    reader = MaskReader(TABLE)
    np.testing.assert_array_equal(reader.read(tmp_path / f"a.{suffix}", "a")[0], 1 - MASK[0])
    np.testing.assert_array_equal(reader.read(tmp_path / f"b.{suffix}", "b")[0], MASK[0])


def test_colours_by_their_tags_and_of_wide_types(tmp_path):
    bands = np.moveaxis(COLORS[MASK[0]], 2, 0)
    order = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    tif(tmp_path / "a.tif", bands[::-1], order, photometric="minisblack")
    tif(tmp_path / "b.tif", bands.astype(np.uint16))
    for name in "ab":
        np.testing.assert_array_equal(MaskReader(TABLE).read(tmp_path / f"{name}.tif", name)[0], MASK[0])
