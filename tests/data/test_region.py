"""Parts of images, at other resolutions, and behind URLs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from data.fakes import tif, write
from rasterio.transform import from_origin
from web import served

from pfseg.data.reader import ImageReader
from pfseg.data.region import Region, polygons_of
from pfseg.data.source import Remote
from pfseg.errors import ConfigError, DataError

UTM = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
TURNED = UTM["transform"] * rasterio.Affine.rotation(5)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """600 x 800 px of 0.5 m: 400 m to the east, 300 m to the south of (500000, 5400000)."""
    bands = np.random.default_rng(0).integers(0, 256, (3, 600, 800), np.uint8)
    tif(tmp_path / "scene.tif", bands, tiled=True, blockxsize=128, blockysize=128, compress="deflate", **UTM)
    return tmp_path / "scene.tif"


def read(path: Any, **region: Any) -> tuple[np.ndarray, Any]:
    """Pixels by rows of 100, and the transform."""
    given = {"bounds": None, "metres": None} | region
    with ImageReader(region=Region(**given)).open(path) as image:
        tops = range(0, image.shape[0], 100)
        rows = [image.read(top, min(top + 100, image.shape[0]))[0] for top in tops]
        return np.concatenate(rows), image.georeference.profile["transform"]


def test_a_region_in_the_crs_of_the_image(scene: Path):
    whole = ImageReader().read(scene)
    pixels, place = read(scene, bounds=(500_010.2, 5_399_800, 500_111, 5_399_950))
    np.testing.assert_array_equal(pixels, whole[100:400, 20:222])
    assert (place.c, place.f, place.a, place.e) == (500_010, 5_399_950, 0.5, -0.5)
    pixels, _ = read(scene, bounds=(499_000, 5_399_990, 500_005, 5_500_000))  # beyond its corner
    np.testing.assert_array_equal(pixels, whole[:20, :10])


@pytest.mark.parametrize("metres", [0.3, 0.8, 2.7])
def test_resampled_rows_do_not_depend_on_which_are_asked_for(scene: Path, metres: float):
    with ImageReader(region=Region(None, metres)).open(scene) as image:
        whole = image.read(0, image.shape[0])[0]
        for top, bottom in ((0, 1), (10, 75), (64, 100), (63, 64), (image.shape[0] - 3, image.shape[0])):
            np.testing.assert_array_equal(image.read(top, bottom)[0], whole[top:bottom])


def test_a_region_as_geojson(scene: Path, tmp_path: Path):
    bounds = rasterio.warp.transform_bounds("EPSG:32632", "OGC:CRS84", 500_010, 5_399_800, 500_110, 5_399_950)
    left, bottom, right, top = bounds
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": polygon}
    for number, content in enumerate((polygon, feature, {"type": "FeatureCollection", "features": [feature]})):
        path = tmp_path / f"{number}.geojson"
        path.write_text(json.dumps(content))
        with ImageReader(region=Region(str(path), None)).open(scene) as image:
            place = image.georeference.profile["transform"]
            assert abs(place.c - 500_010) < 2 and abs(place.f - 5_399_950) < 2
            assert image.shape[0] in range(300, 306) and image.shape[1] in range(200, 206)


def test_geojson_may_name_another_crs(scene: Path, tmp_path: Path):
    """As it did before RFC 7946, and as many programs still write it."""
    ring = [[500_010, 5_399_800], [500_110, 5_399_800], [500_110, 5_399_950], [500_010, 5_399_800]]
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "crs": named, "coordinates": [ring]}))
    assert read(scene, bounds=str(tmp_path / "a.geojson"))[0].shape == (300, 200, 3)


def test_of_polygons_what_lies_within_is_mapped(scene: Path, tmp_path: Path):
    """Each by the centres of its pixels, a few rows at a time as all at once."""
    x, y = np.array([500_010, 500_110, 500_110]), np.array([5_399_950, 5_399_950, 5_399_850])  # a triangle
    ring = [*zip(*rasterio.warp.transform("EPSG:32632", "OGC:CRS84", [*x, x[0]], [*y, y[0]]), strict=True)]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for metres, step in ((None, 0.5), (2.0, 2.0)):
        with ImageReader(region=Region(str(tmp_path / "a.geojson"), metres)).open(scene) as image:
            rows, columns = np.indices(image.shape)
            place = image.georeference.profile["transform"]
            east, north = place * (columns + 0.5, rows + 0.5)
            depth = np.minimum(np.minimum(5_399_950 - north, 500_110 - east), (east - 500_010) - (5_399_950 - north))
            mask = image.outline.mask(0, image.shape[0])
            assert mask[depth > step / 2].all() and not mask[depth < -step / 2].any()
            np.testing.assert_array_equal(image.outline.mask(17, 30), mask[17:30])
            assert image.read(0, 9)[1] is None  # the network sees what lies around


def test_a_coarser_resolution_is_the_mean(scene: Path):
    whole = ImageReader().read(scene)
    pixels, place = read(scene, metres=2.0)
    assert pixels.shape == (150, 200, 3) and (place.a, place.e) == (2, -2)
    expected = whole.reshape(150, 4, 200, 4, 3).mean((1, 3))
    assert np.abs(pixels - expected).max() <= 1
    part, place = read(scene, metres=2.0, bounds=(500_100, 5_399_850, 500_200, 5_399_950))
    assert np.abs(part - expected[25:75, 50:100]).max() <= 1 and (place.c, place.f) == (500_100, 5_399_950)


def test_a_finer_resolution_and_one_that_does_not_divide(scene: Path):
    pixels, place = read(scene, metres=0.25, bounds=(500_000, 5_399_950, 500_050, 5_400_000))
    assert pixels.shape == (200, 200, 3) and place.a == 0.25
    whole = ImageReader().read(scene)[:100, :100]
    expected = cv2.resize(whole, (200, 200), interpolation=cv2.INTER_LINEAR)
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - expected[4:-4, 4:-4]).mean() < 2
    pixels, place = read(scene, metres=0.7)
    assert pixels.shape == (429, 571, 3)
    assert (place * (571, 429)) == pytest.approx((500_400, 5_399_700))  # all of the image


def test_degrees_are_metres_of_latitude(tmp_path: Path):
    place = {"crs": "EPSG:4326", "transform": from_origin(9, 50, 1e-5, 1e-5)}
    tif(tmp_path / "a.tif", np.zeros((3, 100, 80), np.uint8), **place)
    assert read(tmp_path / "a.tif", metres=2 * 1.1132)[0].shape == (50, 40, 3)


@pytest.mark.parametrize(
    ("profile", "region", "fault"),
    [
        ({}, {"metres": 1.0}, r"a.tif has no transform or no CRS, which region and scale_to go by"),
        ({"transform": UTM["transform"]}, {"metres": 1.0}, r"a.tif has no transform or no CRS"),
        (
            UTM | {"transform": TURNED},
            {"metres": 1.0},
            r"turned against its CRS",
        ),
        (UTM, {"bounds": (0, 0, 10, 10)}, r"lies outside of the region \[0,0,10,10\]: it covers \[500000,5399980,"),
    ],
)
def test_images_without_such_a_part(tmp_path: Path, profile: Any, region: Any, fault: str):
    tif(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint8), **profile)
    with pytest.raises(DataError, match=fault):
        read(tmp_path / "a.tif", **region)


def test_files_that_cannot_lie_anywhere(tmp_path: Path):
    write(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"a.png has no transform or no CRS"):
        read(tmp_path / "a.png", metres=1.0)


POINT = '{"type": "Point", "coordinates": [9, 48]}'


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type": "FeatureCollection", "features": []}', '{"type": "Topology"}', POINT]
)
def test_no_geojson(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a.json is no GeoJSON file with polygons .*: give one, or \[left,bottom"):
        polygons_of(str(tmp_path / "a.json"), rasterio.crs.CRS.from_epsg(32632))


def test_of_a_url_only_what_is_needed_is_read(scene: Path):
    """Nothing but the file itself is asked for."""
    with served(scene.parent) as web:
        url = Remote(f"{web.url}/scene.tif")
        assert (str(url), url.stem, url.name) == (f"{web.url}/scene.tif", "scene", "scene.tif")
        pixels, _ = read(url, bounds=(500_010, 5_399_900, 500_060, 5_399_950))
        np.testing.assert_array_equal(pixels, ImageReader().read(scene)[100:200, 20:120])
        assert web.sent["scene.tif"] < scene.stat().st_size / 2 and not web.missed
        with pytest.raises(DataError, match=r"/gone.tif cannot be read: .*404.*; check the address and the network"):
            ImageReader().open(Remote(f"{web.url}/gone.tif"))
