"""A part of a georeferenced image: a region of interest, read at a target resolution."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from pfseg.data.source import Georeference, Part, load_rasterio
from pfseg.errors import ConfigError, DataError, one_line

_DEGREE = 111_320.0  # metres of a degree of latitude
_WORLD = "OGC:CRS84"  # longitude and latitude, those of GeoJSON


@dataclass(frozen=True)
class Region:
    """What to read of each image.

    Args:
        bounds: [left, bottom, right, top] in the image's CRS, or a GeoJSON file of polygons; None for all.
        metres: side of a pixel on the ground; None for the image's own.
    """

    bounds: Sequence[float] | str | None
    metres: float | None

    def part(self, path: PurePath, shape: tuple[int, int], place: Georeference | None) -> Part:
        """Where that lies in an image of `shape` (H, W).

        Raises:
            DataError: the image has no transform or CRS, is turned, or lies elsewhere.
            ConfigError: no GeoJSON.
        """
        profile = place.profile if place else {}
        transform, crs = profile.get("transform"), profile.get("crs")
        if transform is None or (crs is None and (self.metres or isinstance(self.bounds, str))):
            raise DataError(f"{path} has no transform or no CRS, which region and scale_to go by")
        if transform.b or transform.d:
            raise DataError(f"{path} is turned against its CRS: region and scale_to need an image that is not")
        y, x, bottom, right = 0, 0, *shape
        polygons = polygons_of(self.bounds, crs) if isinstance(self.bounds, str) else []
        if self.bounds is not None:
            bounds = _bounds(polygons) if isinstance(self.bounds, str) else self.bounds
            y, x, bottom, right = _pixels(path, bounds, shape, transform)
        height, width = bottom - y, right - x
        step = 1.0 if self.metres is None else self.metres / _ground(transform, crs)
        return Part(y, x, height, width, (max(1, round(height / step)), max(1, round(width / step))), polygons)


class Outline(NamedTuple):
    """Polygons, as GeoJSON in the CRS of an image, outside of which it is not mapped."""

    polygons: Sequence[dict[str, Any]]
    place: Georeference  # of the image
    width: int  # of the image in pixels

    def mask(self, top: int, bottom: int) -> np.ndarray:
        """Which pixels (r, W) of some rows have their centres in a polygon."""
        transform = self.place.profile["transform"]
        transform *= transform.translation(0, top)
        masked = load_rasterio().features.geometry_mask
        return np.asarray(masked(self.polygons, (bottom - top, self.width), transform, invert=True))


def polygons_of(file: str, crs: Any) -> list[dict[str, Any]]:
    """The polygons in a GeoJSON file, in a CRS; raises ConfigError for another file."""
    try:
        text = json.loads(Path(file).read_text(encoding="utf-8"))
        features = text["features"] if "features" in text else [text]
        shapes = [feature.get("geometry", feature) for feature in features]
        if not shapes or (kinds := {shape["type"] for shape in shapes} - {"Polygon", "MultiPolygon"}):
            raise ValueError(f"it holds {', '.join(sorted(kinds)) if shapes else 'nothing'}")
        own = text["crs"]["properties"]["name"] if "crs" in text else _WORLD  # as before RFC 7946
        found: list[dict[str, Any]] = load_rasterio().warp.transform_geom(own, crs, shapes)
    except Exception as error:  # rasterio lets several private errors of GDAL and PROJ through
        raise ConfigError(
            f"region={file} is no GeoJSON file with polygons ({one_line(error)}): give one, or "
            "[left,bottom,right,top] in the CRS of the image"
        ) from error
    return found


def _bounds(polygons: Sequence[dict[str, Any]]) -> tuple[float, float, float, float]:
    lefts, bottoms, rights, tops = zip(*map(load_rasterio().features.bounds, polygons), strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def _pixels(
    path: PurePath, bounds: Sequence[float], shape: tuple[int, int], transform: Any
) -> tuple[int, int, int, int]:
    """Rows and columns [top, left, bottom, right) of a region, to whole pixels outwards."""
    corners = [~transform * corner for corner in (bounds[:2], bounds[2:])]
    (left, right), (top, bottom) = (sorted(side) for side in zip(*corners, strict=True))
    found = (
        max(0, math.floor(top + 1e-6)), max(0, math.floor(left + 1e-6)),
        min(shape[0], math.ceil(bottom - 1e-6)), min(shape[1], math.ceil(right - 1e-6)),
    )  # fmt: skip
    if found[0] >= found[2] or found[1] >= found[3]:
        own = [transform * corner for corner in ((0, shape[0]), (shape[1], 0))]
        raise DataError(
            f"{path} lies outside of the region {_shown(bounds)}: it covers {_shown([*own[0], *own[1]])} "
            "([left, bottom, right, top] in its CRS)"
        )
    return found


def _ground(transform: Any, crs: Any) -> float:
    """Metres that a pixel covers from top to bottom; in degrees those of latitude, which are the same everywhere."""
    return float(abs(transform.e) * (_DEGREE if crs.is_geographic else crs.linear_units_factor[1]))


def _shown(bounds: Sequence[float]) -> str:
    return f"[{','.join(f'{side:.8g}' for side in bounds)}]"
