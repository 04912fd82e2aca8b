"""Outlines of the areas of a class map as GeoJSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pfseg.data.base import ClassInfo, class_ids
from pfseg.data.patches.files import PART, cannot_write
from pfseg.prediction.image import Georeference, import_rasterio

_WGS84 = "EPSG:4326"  # GeoJSON (RFC 7946) knows no other
_CHUNK = 1000  # polygons whose coordinates are converted at a time
_DIGITS = 8  # of degrees: a millimetre


def write_polygons(labels: Path, target: Path, classes: Sequence[ClassInfo], place: Georeference | None) -> list[str]:
    """Write a polygon for each connected area of one class; areas that meet at a corner only are apart.

    Args:
        labels: GeoTIFF of class ids, read lazily.
        target: the GeoJSON file; its features have the properties `class`, `id` and `color`. Coordinates are longitude
            and latitude, or the file's own where it has no CRS, or one that can't be converted.
        classes: the class table.
        place: the image's georeference.

    Returns:
        Warnings for the user.

    Raises:
        WriteError: the file can't be written.
    """
    rasterio = import_rasterio("polygons")
    by_id = dict(zip(class_ids(classes), classes, strict=True))
    crs, notes = _usable_crs(rasterio, target, place)
    part = target.with_name(f".{target.name}{PART}")
    try:
        quiet = warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning)
        with quiet, part.open("w", encoding="utf-8") as file, rasterio.open(labels) as source:
            file.write('{"type": "FeatureCollection", "features": [')
            separator = "\n"
            shapes = rasterio.features.shapes(rasterio.band(source, 1), transform=source.transform)
            for geometry, identity in _converted(rasterio, shapes, crs):
                if (info := by_id.get(int(identity))) is not None:
                    feature = {"type": "Feature", "properties": _properties(info, int(identity)), "geometry": geometry}
                    file.write(separator + json.dumps(feature))
                    separator = ",\n"
            file.write("\n]}\n")
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise cannot_write(target, error) from error
    return notes


def _properties(info: ClassInfo, identity: int) -> dict[str, Any]:
    return {"class": info.name, "id": identity, "color": "#{:02x}{:02x}{:02x}".format(*info.color)}


def _usable_crs(rasterio: Any, target: Path, place: Georeference | None) -> tuple[Any, list[str]]:
    """The CRS to convert from; None where the coordinates stay as they are, with a warning that says so."""
    if place is None or place.crs is None:
        return None, [f"{target}: the image has no CRS, so that the polygons are in its own coordinates"]
    try:
        rasterio.warp.transform(place.crs, _WGS84, [place.profile["transform"].c], [place.profile["transform"].f])
    except Exception as error:  # rasterio lets several private errors of GDAL and PROJ through
        return None, [f"{target}: its CRS can't be converted ({error}): the polygons are in the image's coordinates"]
    return place.crs, []


def _converted(
    rasterio: Any, shapes: Iterator[tuple[dict[str, Any], float]], crs: Any
) -> Iterator[tuple[dict[str, Any], float]]:
    if crs is None:
        yield from shapes
        return
    while some := list(islice(shapes, _CHUNK)):
        geometries = rasterio.warp.transform_geom(crs, _WGS84, [geometry for geometry, _ in some], precision=_DIGITS)
        yield from zip(geometries, (identity for _, identity in some), strict=True)
