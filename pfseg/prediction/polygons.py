"""Outlines of the areas of a class map, as GeoJSON or GeoPackage."""

from __future__ import annotations

import json
import logging
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import ClassInfo, class_ids
from pfseg.data.source import Georeference, load_rasterio
from pfseg.errors import DataError, one_line
from pfseg.prediction.files import PartFile, StreamFile

_WGS84 = "EPSG:4326"  # GeoJSON (RFC 7946) knows no other
_CHUNK = 5000  # polygons that are converted and written at a time
_DIGITS = 8  # of degrees: a millimetre
_POLYGON = 3  # in WKB
Feature = dict[str, Any]  # of GeoJSON


def write_polygons(
    labels: Path, targets: Sequence[Path], classes: Sequence[ClassInfo], place: Georeference | None
) -> list[str]:
    """Write a polygon for each connected area of one class; areas that meet at a corner only are apart.

    Each has the attributes `class`, `id` and `color`.

    Args:
        labels: GeoTIFF of class ids, read lazily.
        targets: *.geojson, of longitude and latitude, or the map's own coordinates where it has no CRS, or one that
            can't be converted; *.gpkg, of the map's own coordinates and CRS.
        classes: the class table.
        place: the image's georeference.

    Returns:
        Warnings for the user.
    """
    rasterio = load_rasterio()
    by_id = dict(zip(class_ids(classes), classes, strict=True))
    transform, crs, note = (place or Georeference()).grid()
    if note and not crs:
        note += ", so that the polygons are in " + ("pixels" if transform is None else "its own coordinates")
    notes = [f"{target}: {note}" for target in targets if note]
    files = [(_GeoPackage if target.suffix == ".gpkg" else _GeoJson)(target, crs) for target in targets]
    try:
        with warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning):
            with rasterio.open(labels) as source:
                shapes = rasterio.features.shapes(rasterio.band(source, 1))  # by the map's own transform
                further = transform if transform and source.transform.is_identity else None
                features = (
                    _feature(polygon, by_id[int(i)], int(i), further) for polygon, i in shapes if int(i) in by_id
                )
                while some := list(islice(features, _CHUNK)):
                    for file in files:
                        file.add(some)
        for file in files:
            file.close()
            file.publish()
    finally:
        for file in files:
            file.discard()
    return notes + [f"{file.path}: {file.note}" for file in files if file.note]


def _feature(polygon: dict[str, Any], info: ClassInfo, number: int, transform: Any) -> Feature:
    if transform:
        a, b, c, d, e, f = transform[:6]
        rings = polygon["coordinates"]
        polygon["coordinates"] = [[(a * x + b * y + c, d * x + e * y + f) for x, y in ring] for ring in rings]
    properties = {"class": info.name, "id": number, "color": info.hex_color}
    return {"type": "Feature", "properties": properties, "geometry": polygon}


class _GeoJson(StreamFile):
    """GeoJSON, a feature a line."""

    def __init__(self, path: Path, crs: Any) -> None:
        super().__init__(path)
        self._warp, self._crs, self.note = load_rasterio().warp, crs, ""
        self._before = '{"type": "FeatureCollection", "features": ['

    def add(self, features: Sequence[Feature]) -> None:
        """Add polygons."""
        polygons = [feature["geometry"] for feature in features]
        if self._crs is not None:
            try:
                polygons = self._warp.transform_geom(self._crs, _WGS84, polygons, precision=_DIGITS)
            except Exception as error:  # rasterio lets several private errors of GDAL and PROJ through
                if self._before == ",":
                    raise  # earlier ones are converted
                self.note = f"its CRS can't be converted ({one_line(error)}): they are in the image's coordinates"
                self._crs = None
        for feature, polygon in zip(features, polygons, strict=True):
            with self.writing():
                self.file.write(f"{self._before}\n{json.dumps(feature | {'geometry': polygon})}".encode())
            self._before = ","

    def close(self) -> None:
        """Write the end."""
        with self.writing():
            self.file.write(f"{self._before.rstrip(',')}\n]}}\n".encode())
        super().close()


class _GeoPackage(PartFile):
    """GeoPackage with one layer, named as the file."""

    note = ""

    def __init__(self, path: Path, crs: Any) -> None:
        super().__init__(path, path.suffix)  # GDAL goes by the suffix
        self._pyogrio, self._crs, self._begun = load_pyogrio(path), crs, False
        self.discard()  # a journal that a kill left would be played back into the new file

    def add(self, features: Sequence[Feature]) -> None:
        """Add polygons."""
        kinds = {"class": object, "id": np.int32, "color": object}
        with self.writing(), warnings.catch_warnings(action="ignore", category=UserWarning):  # of a missing CRS
            try:
                self._pyogrio.raw.write(
                    self.part,
                    np.array([_wkb(feature["geometry"]) for feature in features], object),
                    [np.array([each["properties"][key] for each in features], kind) for key, kind in kinds.items()],
                    list(kinds),
                    layer=self.path.stem,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self._crs.to_wkt() if self._crs else None,
                    append=self._begun,
                )
            except RuntimeError as error:  # all of pyogrio's own
                raise OSError(None, f"{one_line(error)} (the disk may be full)") from error
        self._begun = True

    def close(self) -> None:
        """Make sure that there is a file, also of no polygons."""
        if not self._begun:
            self.add([])

    def discard(self) -> None:
        """Remove what was written and not published, and what SQLite left beside it."""
        super().discard()
        for suffix in ("-journal", "-wal", "-shm"):
            with suppress(OSError):
                self.part.with_name(self.part.name + suffix).unlink(missing_ok=True)


def _wkb(polygon: dict[str, Any]) -> bytes:
    """A GeoJSON polygon as well-known binary (OGC 06-103r4)."""
    rings = [np.asarray(ring, "<f8") for ring in polygon["coordinates"]]
    head = struct.pack("<BII", 1, _POLYGON, len(rings))
    return head + b"".join(struct.pack("<I", len(ring)) + ring.tobytes() for ring in rings)


def load_pyogrio(path: Path) -> Any:
    """pyogrio, which a file needs; raises DataError where it isn't installed."""
    try:
        logging.getLogger("pyogrio").propagate = False  # it counts records
        return import_module("pyogrio")
    except ImportError as error:
        raise DataError(f"{path} needs pyogrio, which is not installed: pip install 'pfseg[geo]'") from error
