"""`pfseg predict`, with a network whose answer is known: each pixel has the class of its strongest colour."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyogrio
import pytest
import rasterio
import rasterio.warp
from data.fakes import write
from privileges import permissions_hold
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from runs import ENVIRONMENT, ROOT
from tiny_network import CLASSES, make_checkpoint
from web import served

from pfseg.commands.predict import run
from pfseg.config.check import check, checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.data.reader import ImageReader
from pfseg.errors import CheckpointError, ConfigError, DataError, WriteError
from pfseg.jobs.predict import run as run_rank
from pfseg.prediction.folder import find_images
from pfseg.prediction.maps import Maps
from pfseg.prediction.shares import Shares
from pfseg.weights.calibration import save_calibration
from pfseg.weights.checkpoint import save_checkpoint

DATA = ROOT.parent / "shared" / "data"
UTM = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "colour.safetensors")


@pytest.fixture
def predict(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    def predict(*overrides: str, given: Path = tmp_path / "in") -> Path:
        settings = [f"checkpoint={checkpoint}", "trust=true", f"input='{given}'", f"output='{tmp_path / 'out'}'"]
        run(check(compose("predict", [*settings, *overrides])))
        return tmp_path / "out"

    return predict


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random colours, (H, W, 3) uint8 RGB, no two channels of a pixel alike."""
    values = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return (3 * values + np.arange(3)).astype(np.uint8)


def save_tif(path: Path, bands: np.ndarray, kinds: list[ColorInterp] | None = None, **profile: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    shape = {"height": height, "width": width, "count": count, "dtype": bands.dtype}
    with warnings.catch_warnings(action="ignore"), rasterio.open(path, "w", "GTiff", **shape, **profile) as file:
        file.write(bands)
        if kinds:
            file.colorinterp = kinds


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def grey(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


# What comes out


@pytest.mark.slow
def test_a_folder_of_pictures(predict, tmp_path):
    """Larger and smaller than a window, below other folders; each map has the size of its image."""
    pictures = {"a.png": picture(150, 201), "b/c.png": picture(40, 30, 1), "b/d.bmp": picture(64, 64, 2)}
    for name, pixels in pictures.items():
        write(tmp_path / "in" / name, pixels)
    out = predict("outputs=[classes,color,overlay,probabilities]")
    for name, pixels in pictures.items():
        stem = (out / name).with_suffix("")
        labels = grey(Path(f"{stem}.png"))
        assert np.array_equal(labels, pixels.argmax(2))
        palette = np.array([row["color"] for row in CLASSES])
        assert np.array_equal(grey(Path(f"{stem}_color.png"))[..., ::-1], palette[labels])
        assert np.array_equal(grey(Path(f"{stem}_overlay.png"))[..., ::-1], (palette[labels] + pixels) // 2)
        probabilities = np.load(f"{stem}_probs.npy", mmap_mode="r")
        assert probabilities.dtype == np.float16 and probabilities.shape == (*labels.shape, 3)
        assert np.array_equal(probabilities.argmax(2), labels)
        np.testing.assert_allclose(probabilities.sum(2, dtype=float), 1, atol=2e-3)
    assert len(list(out.rglob("*"))) == 14  # with the folder b and the record


def test_a_geotiff_keeps_its_place(predict, tmp_path):
    pixels = picture(300, 517)
    pixels[:70, 100:] = 0
    save_tif(tmp_path / "in" / "scene.tif", planes(pixels), nodata=0, **UTM)
    out = predict("outputs=[classes,color,probabilities]")
    valid = pixels.any(2)
    with rasterio.open(out / "scene.tif") as file:
        assert (file.crs.to_string(), file.transform, file.shape) == (UTM["crs"], UTM["transform"], (300, 517))
        assert (file.nodata, file.dtypes, file.descriptions) == (255, ("uint8",), ("class",))
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert file.block_shapes == [(256, 256)]
        assert np.array_equal(file.read(1), np.where(valid, pixels.argmax(2), 255))
        assert [file.colormap(1)[k][:3] for k in range(3)] == [tuple(row["color"]) for row in CLASSES]
    with rasterio.open(out / "scene_color.tif") as file:
        assert file.colorinterp[3] == ColorInterp.alpha
        assert np.array_equal(file.read(4) > 0, valid)
    with rasterio.open(out / "scene_probs.tif") as file:
        assert file.descriptions == ("red", "green", "blue")
        assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"
        found = file.read()
        assert np.array_equal(found.argmax(0)[valid], pixels.argmax(2)[valid]) and not found[:, ~valid].any()


def test_transparent_pixels_have_no_data(predict, tmp_path):
    pixels = picture(90, 70)
    alpha = np.zeros((90, 70, 1), np.uint8)
    alpha[10:40, 20:60] = 255
    save_tif(tmp_path / "in" / "a.tif", planes(np.concatenate([pixels, alpha], 2)))
    (tmp_path / "in").mkdir(exist_ok=True)
    assert cv2.imwrite(str(tmp_path / "in" / "b.png"), np.concatenate([pixels[..., ::-1], alpha], 2))
    out = predict()
    expected = np.where(alpha[..., 0] > 0, pixels.argmax(2), 255)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(out / "a.tif") as file:
        assert np.array_equal(file.read(1), expected) and file.nodata == 255 and file.crs is None
    assert np.array_equal(grey(out / "b.png"), expected)
    predict("nodata=false", "overwrite=true")
    assert np.array_equal(grey(out / "b.png"), pixels.argmax(2))


def test_bands_of_many_are_chosen(predict, tmp_path):
    pixels = picture(80, 70)
    many = np.zeros((12, 80, 70), np.uint16)
    many[[7, 3, 5]] = planes(pixels).astype(np.uint16) * 40 + 1000
    save_tif(tmp_path / "in" / "scene.tif", many)
    with pytest.raises(DataError, match=r"scene.tif has 12 bands \(gray, .*\); say which are .* as bands=\[2,1,0\]"):
        predict()
    with pytest.raises(DataError, match=r"has 12 bands .*, but bands=\[7, 3, 12\] asks for band 12, counted from 0"):
        predict("bands=[7,3,12]", "overwrite=true")
    out = predict("bands=[7,3,5]", "stretch=[0,100]", "format=png", "overwrite=true")
    assert (grey(out / "scene.png") == pixels.argmax(2)).mean() > 0.95  # but for rounding to 8 bits


def test_contrast_is_that_of_the_whole_image(predict, tmp_path):
    """A hazy image becomes the clear one, whichever rows are read at a time."""
    clear = picture(200, 70) // 2 + 60
    hazy = ((clear - clear.mean()) * 0.6 + clear.mean()).round().astype(np.uint8)
    rows = []
    for name, pixels in (("clear", clear), ("hazy", hazy)):
        save_tif(tmp_path / f"{name}.tif", planes(pixels))
        with ImageReader(contrast=float(clear.std())).open(tmp_path / f"{name}.tif") as image:
            rows.append(np.concatenate([image.read(top, top + 50)[0] for top in range(0, 200, 50)]))
    assert np.array_equal(rows[0], clear)
    assert np.abs(rows[0].astype(int) - rows[1]).max() <= 1  # rounding
    save_tif(tmp_path / "in" / "a.tif", planes(hazy))
    maps = [grey(predict("format=png", f"contrast={value}", "overwrite=true") / "a.png") for value in ("own", 1)]
    assert not np.array_equal(*maps)


def test_four_bands_are_refused_unless_the_file_says_what_they_are(predict, tmp_path):
    pixels = picture(70, 70)
    four = np.concatenate([planes(pixels), np.full((1, 70, 70), 250, np.uint8)])
    kinds = [ColorInterp.undefined] * 4
    save_tif(tmp_path / "in" / "a.tif", four, kinds, photometric="minisblack")
    with pytest.raises(DataError, match=r"1 of 1 images could not be .* has 4 bands \(.*\); say which are red"):
        predict()
    save_tif(tmp_path / "in" / "a.tif", four[[2, 1, 0, 3]], [*map(ColorInterp, (5, 4, 3)), ColorInterp.undefined])
    out = predict("format=png")
    assert np.array_equal(grey(out / "a.png"), pixels.argmax(2))


def test_sixteen_bits(predict, tmp_path, capsys):
    """The full range as in training, with a warning where it is dark; percentiles leave out what holds no data."""
    pixels = planes(picture(70, 80)).astype(np.uint16)
    pixels[:, :20] = 65535
    save_tif(tmp_path / "in" / "a.tif", pixels, nodata=65535)
    predict("format=png")
    assert re.search(
        r"a.tif has 16 bits, but 99 % of its values are at most 23\d, so .* nearly black .*; stretch=\[2,98\] uses its",
        capsys.readouterr().out,
    )
    out = predict("format=png", "stretch=[0,100]", "overwrite=true")
    low, high = (bound(pixels[:, 20:].astype(float), axis=(1, 2))[:, None, None] for bound in (np.min, np.max))
    scaled = np.round((pixels - low) / (high - low) * 255)
    assert np.array_equal(grey(out / "a.png"), np.where(pixels[0] < 65535, scaled.argmax(0), 255))
    save_tif(tmp_path / "in" / "a.tif", pixels.astype(np.float32), nodata=65535)
    with pytest.raises(DataError, match=r"a.tif has values of float32, from .*; expected .*: set stretch=\[2,98\]"):
        predict("format=png", "overwrite=true")


def test_a_palette_becomes_colours(predict, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (1, 70, 70), np.uint8)
    path = tmp_path / "in" / "a.tif"
    save_tif(path, labels, photometric="palette")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (9, 200, 9), 1: (0, 0, 99), 2: (250, 0, 0)})
    assert np.array_equal(grey(predict("format=png") / "a.png"), np.array([1, 2, 0], np.uint8)[labels[0]])


def test_polygons_in_longitude_and_latitude(predict, tmp_path):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[...] = (200, 0, 0)
    pixels[10:30, 20:60] = (0, 0, 200)
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), **UTM)
    out = predict("outputs=[polygons]")
    features = json.loads((out / "a.geojson").read_text())["features"]
    assert sorted(each["properties"]["class"] for each in features) == ["blue", "red"]
    (blue,) = [each for each in features if each["properties"] == {"class": "blue", "id": 2, "color": "#0000ff"}]
    corners = rasterio.warp.transform("EPSG:4326", UTM["crs"], *zip(*blue["geometry"]["coordinates"][0], strict=True))
    assert {(round(x, 1), round(y, 1)) for x, y in zip(*corners, strict=True)} == {
        (500_000 + x, 5_400_000 - y) for x in (10, 30) for y in (5, 15)
    }
    assert [path.name for path in sorted(out.iterdir())] == [".pfseg.json", "a.geojson"]


def test_polygons_without_a_crs(predict, tmp_path, capsys):
    write(tmp_path / "in" / "a.png", np.full((70, 70, 3), (0, 200, 0), np.uint8))
    (feature,) = json.loads((predict("outputs=[polygons,classes]") / "a.geojson").read_text())["features"]
    assert feature["properties"]["class"] == "green"
    assert sorted(feature["geometry"]["coordinates"][0])[-1] == [70, 70]
    assert "the image has no CRS, so that the polygons are in pixels" in capsys.readouterr().out


def test_polygons_as_a_geopackage(predict, tmp_path):
    """In the CRS of the image, beside the same polygons as GeoJSON."""
    pixels = np.full((60, 100, 3), (200, 0, 0), np.uint8)
    pixels[10:30, 20:60] = (0, 0, 200)
    pixels[0, :15] = 0
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), nodata=0, **UTM)
    out = predict("outputs=[geopackage,polygons,classes]")
    assert [path.name for path in sorted(out.iterdir())] == [".pfseg.json", "a.geojson", "a.gpkg", "a.tif"]
    meta, _, geometry, (names, ids, colors) = pyogrio.raw.read(out / "a.gpkg")
    assert meta["crs"] == UTM["crs"] and pyogrio.list_layers(out / "a.gpkg").tolist() == [["a", "Polygon"]]
    assert sorted(zip(names, ids, colors, strict=True)) == [("blue", 2, "#0000ff"), ("red", 0, "#ff0000")]
    rings = np.frombuffer(geometry[names.tolist().index("blue")][13:], "<f8").reshape(-1, 2)
    assert {tuple(point) for point in rings} == {(500_000.0 + x, 5_400_000.0 - y) for x in (10, 30) for y in (5, 15)}
    assert len(json.loads((out / "a.geojson").read_text())["features"]) == 2


def test_a_geopackage_of_many_areas_and_of_none(predict, tmp_path, capsys):
    """More areas than are written at a time; an image without data becomes a file without polygons."""
    pixels = np.zeros((160, 160, 3), np.uint8)
    rows, columns = np.mgrid[:160, :160]
    pixels[np.arange(160)[:, None], np.arange(160), (rows // 2 + columns // 2) % 2] = 200
    write(tmp_path / "in" / "a.png", pixels)
    write(tmp_path / "in" / "b.png", np.zeros((70, 70, 4), np.uint8))
    (out := tmp_path / "out").mkdir()
    for killed in (".a.part.gpkg", ".a.part.gpkg-journal"):
        (out / killed).write_bytes(b"torn")
    predict("outputs=[geopackage]")
    assert [path.name for path in sorted(out.iterdir())] == [".pfseg.json", "a.gpkg", "b.gpkg"]
    areas = pyogrio.read_info(out / "a.gpkg")["features"]
    assert areas == 80 * 80 > 5000 and pyogrio.read_info(out / "b.gpkg")["features"] == 0
    assert f"{out / 'a.gpkg'}: the image has no CRS" in capsys.readouterr().out


def test_polygons_of_images_that_are_placed_otherwise(predict, tmp_path, capsys):
    """Ground control points place them, a CRS alone doesn't; no image ends the work on the others."""
    pixels = np.full((96, 96, 3), (0, 200, 0), np.uint8)
    corners = [(0, 0, 54.90, 25.18), (0, 96, 54.91, 25.18), (96, 0, 54.90, 25.17), (96, 96, 54.91, 25.17)]
    points = [GroundControlPoint(*corner, 0) for corner in corners]
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), crs="EPSG:32640")
    save_tif(tmp_path / "in" / "b.tif", planes(pixels), gcps=points, crs="EPSG:4326")
    save_tif(tmp_path / "in" / "c.tif", planes(pixels), **UTM)
    out = predict("outputs=[classes,polygons,geopackage]")
    told = capsys.readouterr().out
    assert "a.geojson: the image has a CRS, but no transform, so that the polygons are in pixels" in told
    assert "b.geojson: placed by the plane through 4 ground control points" in told
    assert "c.geojson" not in told and "records" not in told
    rings = [json.loads((out / f"{name}.geojson").read_text())["features"][0]["geometry"] for name in "abc"]
    found = [sorted(map(tuple, ring["coordinates"][0])) for ring in rings]
    assert found[0][-1] == (96, 96)
    np.testing.assert_allclose(found[1][0], (54.90, 25.17), atol=1e-6)
    np.testing.assert_allclose(found[2][0], (9, 48.754), atol=0.01)
    assert pyogrio.read_info(out / "b.gpkg")["crs"] == "EPSG:4326" and not pyogrio.read_info(out / "a.gpkg")["crs"]


def test_how_sure_the_network_is(predict, tmp_path):
    """Each measure has a GeoTIFF of its own, without data where the image has none, or a PNG of percents."""
    pixels = picture(90, 120)
    pixels[:30] = 0
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), nodata=0, **UTM)
    write(tmp_path / "in" / "b.png", pixels[30:])
    names = ["confidence", "entropy", "margin", "disagreement"]
    given = [f"outputs=[probabilities,{','.join(names)}]", "flips=h"]
    out = predict(*given)
    with rasterio.open(out / "a_probs.tif") as file:
        probabilities = file.read()[:, 30:].astype(float)
    ordered = np.sort(probabilities, axis=0)
    expected = {
        "confidence": ordered[-1],
        "entropy": -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(0) / np.log(3),
        "margin": ordered[-1] - ordered[-2],
        "disagreement": np.zeros((60, 120)),  # of a network that looks at single pixels
    }
    for name in names:
        with rasterio.open(out / f"a_{name}.tif") as file:
            assert (file.count, file.dtypes, file.descriptions, file.crs) == (1, ("float32",), (name,), UTM["crs"])
            found = file.read(1)
        assert np.isnan(found[:30]).all()
        np.testing.assert_allclose(found[30:], expected[name], atol=4e-3)
        percents = grey(out / f"b_{name}.png")
        assert percents.dtype == np.uint8
        np.testing.assert_allclose(percents, 100 * expected[name], atol=1)
    out = predict(*given, "percent=true", "overwrite=true")
    with rasterio.open(out / "a_entropy.tif") as file:
        assert (file.dtypes, file.nodata, file.descriptions) == (("uint8",), 255, ("entropy in percent",))
        assert (file.read(1)[:30] == 255).all()
        np.testing.assert_allclose(file.read(1)[30:], 100 * expected["entropy"], atol=1)


def test_the_calibrated_temperature_is_followed(tmp_path):
    """It leaves the classes as they are; a file of another checkpoint is refused."""
    checkpoint = make_checkpoint(tmp_path / "net" / "colour.safetensors")
    write(tmp_path / "a.png", picture(64, 64))

    def probabilities(name: str, *overrides: str) -> np.ndarray:
        given = [f"checkpoint={checkpoint}", "trust=true", f"input={tmp_path / 'a.png'}", f"output={tmp_path / name}"]
        run(check(compose("predict", [*given, "outputs=[probabilities,classes]", *overrides])))
        return np.load(tmp_path / name / "a_probs.npy").astype(float)

    plain = probabilities("plain")
    save_calibration(checkpoint, {"temperature": 2.0})
    softer = probabilities("softer")
    expected = np.sqrt(plain) / np.sqrt(plain).sum(2, keepdims=True)
    np.testing.assert_allclose(softer, expected, atol=5e-3)
    assert np.array_equal(grey(tmp_path / "softer" / "a.png"), grey(tmp_path / "plain" / "a.png"))
    np.testing.assert_allclose(probabilities("given", "temperature=1"), plain, atol=1e-3)
    assert "temperature 2)" in json.loads((tmp_path / "softer" / ".pfseg.json").read_text())["checkpoint"]
    make_checkpoint(checkpoint, mean=[0.4] * 3)
    with pytest.raises(CheckpointError, match=r"colour.calibration.json is of another colour.safetensors"):
        probabilities("other")


def test_several_checkpoints_are_averaged(checkpoint, predict, tmp_path):
    """Networks that were trained with other means and deviations are given what they expect."""
    other = make_checkpoint(tmp_path / "other.safetensors", mean=[0.2, 0.5, 0.3], std=[0.5, 0.25, 0.1])
    write(tmp_path / "in" / "a.png", picture(64, 80))
    given = ["outputs=[probabilities,disagreement]", "overwrite=true"]
    single = []
    for path in (checkpoint, other):
        out = predict(f"checkpoint={path}", "outputs=[probabilities]", "overwrite=true")
        single.append(np.load(out / "a_probs.npy").astype(float))
    out = predict(*given, f"checkpoint=[{checkpoint},{other}]")
    np.testing.assert_allclose(np.load(out / "a_probs.npy").astype(float), np.mean(single, axis=0), atol=2e-3)
    entropies = [-(each * np.log(np.maximum(each, 1e-9))).sum(2) / np.log(3) for each in (np.mean(single, 0), *single)]
    apart = entropies[0] - np.mean(entropies[1:], axis=0)
    np.testing.assert_allclose(grey(out / "a_disagreement.png"), 100 * apart, atol=1.5)
    assert apart.max() > 0.1


def test_a_region_at_another_resolution(predict, tmp_path):
    """The map has the part's place and pixels; changing either needs `overwrite`."""
    pixels = np.kron(picture(60, 80), np.ones((4, 4, 1), np.uint8))  # 240 x 320 px of 0.5 m
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), **UTM)
    part = ["region=[500040,5399900,500120,5399980]", "scale_to=2"]
    out = predict(*part, "outputs=[classes,polygons]")
    with rasterio.open(out / "a.tif") as file:
        assert file.shape == (40, 40)
        assert file.transform == from_origin(500_040, 5_399_980, 2, 2)
        np.testing.assert_array_equal(file.read(1), picture(60, 80).argmax(2)[10:50, 20:60])
    with pytest.raises(ConfigError, match=r"holds maps made with scale_to=2.0, this is scale_to=None"):
        predict(part[0])


def test_a_region_that_is_no_rectangle(predict, tmp_path):
    """Outside of the polygon the map holds nothing, whatever the image holds."""
    pixels = picture(300, 300)
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), **UTM)
    x, y = [500_020, 500_120, 500_020, 500_020], [5_399_980, 5_399_980, 5_399_880, 5_399_980]
    ring = [*zip(*rasterio.warp.transform("EPSG:32632", "OGC:CRS84", x, y), strict=True)]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    out = predict(f"region={tmp_path / 'a.geojson'}", "outputs=[classes,color,confidence,polygons]", "window=64")
    with rasterio.open(out / "a.tif") as file:
        labels, top, left = file.read(1), *file.index(500_020.25, 5_399_979.75)
        assert file.nodata == 255 and abs(file.shape[0] - 200) < 3
        part = labels[top : top + 200, left : left + 200]
        inside = part != 255
        assert inside[5, 5:190].all() and inside[5:190, 5].all() and not inside[120:, 120:].any()
        assert abs(inside.sum() / 20_000 - 1) < 0.02
        np.testing.assert_array_equal(part[inside], pixels[40:240, 40:240].argmax(2)[inside])
    with rasterio.open(out / "a_color.tif") as file:
        np.testing.assert_array_equal(file.read(4) > 0, labels != 255)
    with rasterio.open(out / "a_confidence.tif") as file:
        np.testing.assert_array_equal(np.isfinite(file.read(1)), labels != 255)
    (tmp_path / "a.geojson").write_text((tmp_path / "a.geojson").read_text() + " ")
    with pytest.raises(ConfigError, match=r"holds maps made with region=\S+/a.geojson \(sha256 \w+\), this is region="):
        predict(f"region={tmp_path / 'a.geojson'}", "window=64")


def test_an_image_behind_a_url(predict, tmp_path):
    """By its address, and as the asset of a STAC item beside it."""
    pixels = picture(100, 120)
    save_tif(tmp_path / "web" / "b" / "scene.tif", planes(pixels), **UTM)
    assets = {
        "image": {"href": "./b/scene.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]},
        "view": {"href": "./view.tif", "type": "image/tiff", "roles": ["thumbnail"]},
        "info": {"href": "./info.json", "type": "application/json"},
    }
    item = {"type": "Feature", "stac_version": "1.0.0", "assets": assets}
    (tmp_path / "web" / "item.json").write_text(json.dumps(item))
    with served(tmp_path / "web") as web:
        for given in (f"{web.url}/b/scene.tif", f"{web.url}/item.json", tmp_path / "web" / "item.json"):
            out = predict("overwrite=true", given=given)
            with rasterio.open(out / "scene.tif") as file:
                assert file.crs == UTM["crs"] and file.transform == UTM["transform"]
                np.testing.assert_array_equal(file.read(1), pixels.argmax(2))
        with pytest.raises(ConfigError, match=r"asset=red is not in .*item.json: choose one of image, info, view"):
            predict("asset=red", given=f"{web.url}/item.json")
        with pytest.raises(DataError, match=r"gone.json cannot be read: .*404.*; check the address and the network"):
            predict(given=f"{web.url}/gone.json")
        with pytest.raises(DataError, match=r"1 of 1 images could not be predicted; .*gone.tif cannot be read: .*404"):
            predict("overwrite=true", given=f"{web.url}/gone.tif")


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("{", DataError, r"item.json is no STAC item \(JSONDecodeError"),
        ('{"type": "Feature"}', DataError, r"item.json is no STAC item \(KeyError: 'assets'\): expected JSON with"),
        ('{"assets": {"b": {"type": "text/html"}, "a": {}}}', ConfigError, r"has 0 images: choose one by asset=<name>"),
    ],
)
def test_items_that_name_no_image(predict, tmp_path, text, fault, message):
    (tmp_path / "item.json").write_text(text)
    with pytest.raises(fault, match=message):
        predict(given=tmp_path / "item.json")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": CLASSES[:2]}, r"has classes=\['red', 'green', 'blue'\], .* has \['red', 'green'\]; only networks"),
        ({"stretch": [2, 98]}, r"has stretch=None, .* has \[2.0, 98.0\]"),
        ({"scale": 0.5}, r"has scale=1.0, .* has 0.5"),
    ],
)
def test_checkpoints_that_do_not_go_together(checkpoint, predict, tmp_path, change, fault):
    other = make_checkpoint(tmp_path / "other.safetensors", **change)
    write(tmp_path / "in" / "a.png", picture(64, 64))
    with pytest.raises(ConfigError, match=fault):
        predict(f"checkpoint=[{checkpoint},{other}]")


def test_a_fault_nobody_thought_of_ends_one_image(predict, tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.png", picture(70, 70))
    monkeypatch.setattr("pfseg.jobs.predict.Maps", lambda *given, **more: _fail_for("b", *given, **more))
    with pytest.raises(DataError, match=r"1 of 3 images .*; the first: .*b.png: unforeseen KeyError \('crs'\); please"):
        predict()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pfseg.json", "a.png", "c.png"]


def _fail_for(name: str, targets: dict[str, Path], *given: Any, **more: Any) -> Maps:
    if any(path.stem == name for path in targets.values()):
        raise KeyError("crs")
    return Maps(targets, *given, **more)


def test_ids_of_the_class_table(checkpoint, predict, tmp_path):
    """Class ids of 0 and 255 as in masks; what holds no data then is 254."""
    classes = [{"name": "no", "color": [0, 0, 0], "id": 0}, {"name": "yes", "color": [255, 255, 255], "id": 255}]
    other = make_checkpoint(tmp_path / "two.safetensors", classes=classes)
    pixels = picture(70, 90)
    pixels[:5] = 0
    save_tif(tmp_path / "in" / "a.tif", planes(pixels), nodata=0, **UTM)
    with rasterio.open(predict(f"checkpoint={other}") / "a.tif") as file:
        expected = np.where(pixels[..., 0] > pixels[..., 1], 0, 255)
        expected[:5] = 254
        assert np.array_equal(file.read(1), expected) and file.nodata == 254


def test_images_are_read_as_in_training(predict, tmp_path, capsys):
    """By the record of the checkpoint, whatever its data set's own settings; patches of a preparation as they are."""
    pixels = picture(80, 70)
    many = np.zeros((5, 80, 70), np.uint16)
    many[[3, 0, 1]] = planes(pixels).astype(np.uint16) * 40
    save_tif(tmp_path / "in" / "a.tif", many, photometric="minisblack")
    seen = {"type": "uint16", "bands": 5, "bounds": [[0, 10200]] * 3}
    how = {"bands": [3, 0, 1], "stretch": {"range": [0, 10200]}, "nodata": "black", "seen": seen}
    other = make_checkpoint(tmp_path / "other.safetensors", record=how)
    out = predict(f"checkpoint={other}", "format=png")
    assert np.array_equal(grey(out / "a.png"), pixels.argmax(2))
    assert "a.tif" not in capsys.readouterr().out
    changed = predict(f"checkpoint={other}", "format=png", "overwrite=true", "bands=[1,0,3]")
    assert np.array_equal(grey(changed / "a.png"), pixels[..., [2, 1, 0]].argmax(2))
    save_tif(tmp_path / "in" / "a.tif", many // 100, photometric="minisblack")
    predict(f"checkpoint={other}", "format=png", "overwrite=true")
    told = capsys.readouterr().out
    assert re.search(r"values are at most \d+, those of the images that the network was trained on at most 10200", told)
    save_tif(tmp_path / "in" / "a.tif", many[:3].astype(np.uint8))
    with pytest.raises(DataError, match=r"a.tif has 3 bands .*, but bands=\[3, 0, 1\] asks for band 3"):
        predict(f"checkpoint={other}", "format=png", "overwrite=true")
    write(tmp_path / "patches" / "val" / "images" / "b.png", pixels)
    (tmp_path / "patches" / "index.json").write_text("{}")
    out = predict(f"checkpoint={other}", "overwrite=true", given=tmp_path / "patches" / "val" / "images")
    assert np.array_equal(grey(out / "b.png"), pixels.argmax(2))


# Going on


def test_the_same_command_goes_on(predict, tmp_path, capsys):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.png", picture(70, 70))
    out = predict()
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "b.png").unlink()
    predict()
    again = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert {name for name in first if first[name] != again[name]} == {"b.png"}
    assert "1 image predicted" in (told := capsys.readouterr().out) and "2 were finished before" in told
    with pytest.raises(
        ConfigError, match=r"holds maps made with flips=none, this is flips=d4: give another folder, or"
    ):
        predict("flips=d4")
    predict("flips=d4", "overwrite=true")
    with pytest.raises(ConfigError, match=r"^precision=tf32 needs a GPU: use precision=fp32 or bf16 on a CPU$"):
        predict("precision=tf32", "overwrite=true")


def test_damaged_images_are_named_and_the_rest_done(predict, tmp_path, capfd):
    folder = tmp_path / "in"
    for name in "acd":
        save_tif(folder / f"{name}.tif", planes(picture(700, 300)), tiled=True, blockxsize=256, blockysize=256, **UTM)
    content = bytearray((folder / "c.tif").read_bytes())
    (folder / "c.tif").write_bytes(content[: len(content) // 2])
    (folder / "b.tif").write_text("no image at all")
    (folder / "e.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 5 images could not be predicted; the first: .*/b.tif cannot be read: "):
        predict()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pfseg.json", "a.tif", "d.tif"]
    told = capfd.readouterr()  # no line of GDAL's own
    assert not told.err
    assert [line.partition(":")[0] for line in told.out.splitlines() if not line.startswith("2 images")] == [
        "failed"
    ] * 3


def test_a_full_disk_leaves_nothing_half_written(predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(300, 300))
    save_tif(tmp_path / "in" / "b.tif", planes(picture(300, 300)), **UTM)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    of_picture, of_raster = ("classes", "probabilities"), ("classes", "overlay", "geopackage")
    for name, output in [*(("a.png", each) for each in of_picture), *(("b.tif", each) for each in of_raster)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(
                WriteError, match=rf"/out/{name[0]}.* can't be written .*free some space.*, then give the same"
            ):
                predict(f"outputs=[{output}]", given=tmp_path / "in" / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".pfseg.json"]


def test_no_permission(predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(70, 70))
    (tmp_path / "out").mkdir(mode=0o500)
    error = r"/out.* can't be written \(Permission denied\); check the folder and its permissions, then give"
    with permissions_hold(), pytest.raises(WriteError, match=error):
        predict()


def test_the_output_is_a_file(predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(70, 70))
    (tmp_path / "out").write_text("")
    with pytest.raises(
        WriteError, match=r"/out can't be written \(File exists\); check the folder .*, then give the same"
    ):
        predict()


# What is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["input=nowhere"],
            r"input=nowhere does not exist \(looked in /.*nowhere\): give an image, a folder, or a patt",
        ),
        (["input='nowhere/*.tif'"], r"input=nowhere/\*.tif matches no files"),
        (["outputs=[]"], r"outputs=\[\] writes nothing: name one or more"),
        (["region=[3,2,1,4]"], r"expected \[left, bottom, right, top\] with left < right"),
        (["resize=64", "window=64"], r"resize and window are both set"),
        (["overlap=1"], r"overlap=1: expected a number of at least 0 and below 1"),
        (["bands=[0,1,2,3]"], r"bands=\[0, 1, 2, 3\] names 4 bands, but the network takes 3"),
        (["stretch=[98,2]"], r"stretch=\[98,2\]: expected \[low, high\] with low < high"),
        (["scales=[]"], r"scales=\[\]: expected one or more numbers above 0"),
        (["checkpoint=[]"], r"checkpoint=\[\] is empty"),
        (["outputs=[disagreement]"], r"compares several predictions: give checkpoint=\[a,b,...\], or flips"),
        (["checkpoint=weights.pth"], r"checkpoint=weights.pth does not exist"),
    ],
)
def test_settings_that_do_not_fit(overrides, message, predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(70, 70))
    with pytest.raises(ConfigError, match=message):
        predict(*overrides)
    assert not (tmp_path / "out").exists()


def test_hidden_folders_and_brackets(predict, tmp_path):
    """Jupyter's copies are no images; a pattern may lie below a folder whose name looks like one."""
    for name in ("scene [1]/a.tif", "scene [1]/.ipynb_checkpoints/a-checkpoint.tif", "scene [1]/sub/b.tif"):
        save_tif(tmp_path / name, planes(picture(70, 70)), **UTM)
    out = predict(given=tmp_path / "scene [1]")
    assert sorted(path.name for path in out.rglob("*.tif")) == ["a.tif", "b.tif"]
    for pattern, names in (("*.tif", ["a.tif"]), ("**/*.tif", ["a.tif", "b.tif"]), ("a.tif", ["a.tif"])):
        found = find_images(str(tmp_path / "scene [1]" / pattern), tmp_path / "out")[1]
        assert [path.name for path in found] == names


def test_masks_of_a_data_set_are_not_mapped(predict, tmp_path, capsys):
    for name in ("val/images/a.tif", "val/masks/a.tif", "masks/b.tif"):
        save_tif(tmp_path / "in" / name, planes(picture(70, 70)), **UTM)
    out = predict()
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.tif")) == ["masks/b.tif", "val/images/a.tif"]
    assert f"{tmp_path}/in/val/masks is left out: it holds masks\n" in capsys.readouterr().out
    predict("overwrite=true", given=tmp_path / "in" / "val" / "masks")
    assert (out / "a.tif").exists()


def test_maps_never_replace_images_or_each_other(predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(70, 70))
    with pytest.raises(ConfigError, match=r"output=.*/in is the folder of the images"):
        predict(f"output={tmp_path / 'in'}")
    with pytest.raises(ConfigError, match=r"the map of .*/in/a.png would be .*/in/a.png, which is that of"):
        predict(f"output={tmp_path / 'in'}", given=tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "a.bmp", picture(70, 70))
    with pytest.raises(
        ConfigError, match=r"the map of .*/in/a.png would be .*/out/a.png, which is that of .*/in/a.bmp"
    ):
        predict()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"/empty holds no images: expected files named \*.png"):
        predict(given=tmp_path / "empty")


def test_a_network_that_is_not_ours_needs_trust(predict, tmp_path):
    write(tmp_path / "in" / "a.png", picture(70, 70))
    with pytest.raises(CheckpointError, match=r"names tiny_network.Colour, .* rejected, .*; add trust=true if"):
        predict("trust=false")
    save_checkpoint(tmp_path / "bare.safetensors", {}, {"config": {"model": {}, "dataset": {"classes": CLASSES}}})
    with pytest.raises(CheckpointError, match=r"bare.safetensors doesn't say how it was trained \(.* is missing"):
        predict(f"checkpoint={tmp_path / 'bare.safetensors'}")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(
        ConfigError, match=r"weights.pth must be a run folder, a .safetensors file.*; pfseg convert makes one"
    ):
        predict(f"checkpoint={tmp_path / 'weights.pth'}")


def test_without_pyogrio(predict, tmp_path, monkeypatch):
    """It is told before the image is predicted."""
    write(tmp_path / "in" / "a.png", picture(70, 70))
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    with pytest.raises(DataError, match=r"a.gpkg needs pyogrio, which is not installed: pip install 'pfseg\[geo\]'"):
        predict("outputs=[geopackage]")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".pfseg.json"]


# As commands


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pfseg", "predict", *arguments]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT | paths | environment, cwd=ROOT, **pipes)


def in_ranks(checkpoint: Path, folder: Path, *overrides: str, ranks: int = 2, path: str = "") -> subprocess.Popen[str]:
    given = [f"checkpoint={checkpoint}", "trust=true", f"input={folder / 'in'}", f"output={folder / 'out'}", "gpus=0"]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{path}{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "pfseg", "predict", *given, f"ranks={ranks}", *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder, **pipes)


def kill_a_rank(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    """Kill rank 1 as soon as something is done, and let rank 0 do no more."""
    ranks: dict[str, psutil.Process] = {}
    while not {"0", "1"} <= ranks.keys() or not done():
        assert process.poll() is None, process.communicate()
        for child in psutil.Process(process.pid).children(recursive=True) if not {"0", "1"} <= ranks.keys() else ():
            with suppress(psutil.Error):
                ranks.setdefault(child.environ().get("OMPI_COMM_WORLD_RANK", ""), child)
        time.sleep(0.01)
    ranks["0"].suspend()
    ranks["1"].kill()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and "was killed (exit code 137)" in errors


def test_the_first_rank_waits_for_the_others(checkpoint, tmp_path):
    """What it returns is the result of the job: another rank may be stopped in the middle of an image."""
    write(tmp_path / "in" / "a.png", picture(70, 70))
    given = [f"checkpoint={checkpoint}", "trust=true", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    settings, folder = check(compose("predict", given)), tmp_path / "out" / ".pfseg"
    with pytest.raises(
        ConfigError, match=r"^host \S+ doesn't see \S+/out/.pfseg: give an output that all hosts share$"
    ):
        run_rank(settings, folder, lambda: False)
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").touch()
    asked: list[bool] = []
    for _ in Shares(folder, 1).claim([str(tmp_path / "in" / "a.png")]):
        assert run_rank(settings, folder, lambda: len(asked) > 1 or asked.append(True)) == {"status": "stopped"}
    assert len(asked) == 2 and not (tmp_path / "out" / "a.png").exists()
    assert run_rank(settings, folder, lambda: False) == {"status": "done"} and (tmp_path / "out" / "a.png").exists()


@pytest.mark.slow
def test_ranks_share_the_images(checkpoint, tmp_path):
    """Killed in the middle, the same command does the rest; every map is that of one process, and written once."""
    for number in range(9):
        save_tif(tmp_path / "in" / f"{number}.tif", planes(picture(520, 600, number)), **UTM)
    (tmp_path / "in" / "damaged.png").write_bytes(b"no image")
    out = tmp_path / "out"
    given = ["window=64", "flips=d4"]  # enough to do for a kill to come in time
    kill_a_rank(in_ranks(checkpoint, tmp_path, *given), lambda: len(list(out.glob("?.tif"))) > 2)
    before = {path: path.stat().st_mtime_ns for path in out.glob("?.tif")}
    assert 3 <= len(before) < 9
    told, errors = in_ranks(checkpoint, tmp_path, *given).communicate(timeout=200)
    assert re.search(rf"\b{9 - len(before)} images? predicted into .*, {len(before)} were finished before", told), told
    assert "error: 1 of 10 images could not be predicted; the first: " in errors and "damaged.png" in errors
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for number in range(9):
        with rasterio.open(out / f"{number}.tif") as file:
            np.testing.assert_array_equal(file.read(1), picture(520, 600, number).argmax(2))
    assert sorted(path.name for path in out.iterdir()) == [".pfseg.json", *(f"{number}.tif" for number in range(9))]


FULL_DISK = """
import os, resource, threading, time
from pathlib import Path

def fill():  # once Jittor has written its own files
    while not [*Path("out").glob(".pfseg-strips/*/*.npz")]:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

if os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
    threading.Thread(target=fill, daemon=True).start()
"""


@pytest.mark.slow
def test_ranks_share_one_image(predict, tmp_path, monkeypatch):
    """Whatever happens to them and however many they are, the maps are those of one process, byte by byte.

    A sparse GeoTIFF with data in a part of it, a network that sees farther than the windows overlap, and all outputs.
    """
    monkeypatch.setenv("OGR_CURRENT_DATE", "2026-01-01T00:00:00Z")  # in GeoPackages
    monkeypatch.setitem(ENVIRONMENT, "OGR_CURRENT_DATE", "2026-01-01T00:00:00Z")
    checkpoint = make_checkpoint(tmp_path / "blurred.safetensors", side=31)
    (tmp_path / "in").mkdir()
    shape = {"height": 1700, "width": 500, "count": 3, "dtype": "uint8", "nodata": 0}
    how = {"tiled": True, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", "GTiff", **shape, **how, **UTM) as file:
        file.write(planes(picture(1200, 400)), window=((100, 1300), (100, 500)))
    outputs = "[classes,color,overlay,probabilities,polygons,geopackage,confidence,entropy,margin,disagreement]"
    given = [f"outputs={outputs}", "flips=h", "window=96", "overlap=0.6"]
    one = predict(*given, f"checkpoint={checkpoint}").rename(tmp_path / "one")

    out = tmp_path / "out"
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "sitecustomize.py").write_text(FULL_DISK)
    _, errors = in_ranks(checkpoint, tmp_path, *given, path=f"{tmp_path}/disk:").communicate(timeout=200)
    fault = r"error: \S+/out/.pfseg-strips/\w+/\d+-of-44.npz can't be written \(File too large\); free .* is kept$"
    assert re.search(fault, errors), errors
    before = set(out.rglob("*-of-44.npz"))
    kill_a_rank(
        in_ranks(checkpoint, tmp_path, *given), lambda: len([*out.rglob("*-of-44.npz")]) > min(len(before) + 5, 40)
    )
    strips = set(out.rglob("*-of-44.npz"))
    assert before < strips and len(strips) < 44 and not [*out.glob("a*")]
    marked = next(path for path in strips if np.isfinite(np.load(path)["margin"]).any())
    fields = dict(np.load(marked))
    fields["margin"][np.isfinite(fields["margin"])] = 0.25  # to see that it isn't made again
    np.savez_compressed(marked, **fields)
    told, errors = in_ranks(checkpoint, tmp_path, *given, ranks=4).communicate(timeout=200)
    assert "1 image predicted into" in told, errors
    for path in one.iterdir():
        assert (path.read_bytes() == (out / path.name).read_bytes()) == (path.name != "a_margin.tif"), path.name
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in one.iterdir())
    with rasterio.open(one / "a_margin.tif") as expected, rasterio.open(out / "a_margin.tif") as found:
        other = np.isfinite(expected.read(1)) & (expected.read(1) != found.read(1))
        assert 0 < np.ptp(np.flatnonzero(other.any(1))) < 40 and (found.read(1)[other] == 0.25).all()


@pytest.mark.slow
def test_stopped_by_a_signal(checkpoint, tmp_path):
    write(tmp_path / "in" / "a.png", picture(100, 100))
    write(tmp_path / "in" / "b.png", picture(3000, 3000))
    given = [f"checkpoint={checkpoint}", "trust=true", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    process = start(*given, "flips=d4", "overlap=0.5")
    while not (tmp_path / "out" / "a.png").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "stopped after 1 of 2 images; the same command goes on from there" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".pfseg.json", "a.png"]


@pytest.mark.shared_data("gaofen_like", "geotiff")
def test_the_challenge(tmp_path):
    """PNGs of 0 and 255 of the image's size, by the command of the challenge and a network of our own."""
    from pfseg.build import build_model
    from pfseg.weights.transfer import export_weights

    root = DATA / "gaofen_like" / "sar"
    settings = ["dataset=gaofen_sar", f"dataset.root={root}", "model=pfnet_r18", "model.fpn_dim=32"]
    config = checked(compose("train", [*settings, "model.match_dim=16", "gpus=0", "ranks=1", "logger=none"]), Train)
    weights = export_weights(build_model(config.model, 2))
    save_checkpoint(
        tmp_path / "net.safetensors", weights, {"config": config.dump(), "progress": {"step": 0}, "epoch": 0}
    )
    (folder,) = root.glob("val/image")
    process = start(
        f"input={folder}", f"output={tmp_path / 'out'}", "preset=gaofen", "resize=128",
        PFSEG_CHECKPOINT=str(tmp_path / "net.safetensors"),
    )  # fmt: skip
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, out + told
    for image in folder.iterdir():
        labels = grey(tmp_path / "out" / f"{image.stem}.png")
        assert labels.shape == grey(image).shape[:2] and set(np.unique(labels)) <= {0, 255}


@pytest.mark.shared_data("gaofen_like", "geotiff")
def test_real_geotiffs(predict):
    """Of each kind: bands, types, nodata, alpha, palette, JPEG, Mars."""
    folder = DATA / "geotiff"
    out = predict("window=512", "overlap=0", given=folder)
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as image, rasterio.open(out / path.name) as found:
            assert (found.shape, found.crs, found.transform) == (image.shape, image.crs, image.transform)
            labels, valid = found.read(1), image.dataset_mask() > 0
            assert set(np.unique(labels[::4, ::4])) <= {0, 1, 2, 255}
            assert np.array_equal(labels != 255, valid) and valid.any()
