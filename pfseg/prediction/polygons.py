"""Outlines of the areas of a class map, as GeoJSON or GeoPackage."""

from __future__ import annotations

import json
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import ClassInfo, class_ids
from pfseg.data.preparation.files import cannot_write
from pfseg.errors import DataError
from pfseg.files import PART
from pfseg.prediction.image import Georeference, import_rasterio

_WGS84 = "EPSG:4326"  # GeoJSON (RFC 7946) knows no other
_CHUNK = 5000  # polygons that are converted and written at a time
_DIGITS = 8  # of degrees: a millimetre
_POLYGON = 3  # in WKB

Area = tuple[dict[str, Any], ClassInfo, int]  # polygon as in GeoJSON, its class, and the class's id


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

    Raises:
        DataError: pyogrio is needed and not installed.
        WriteError: a file can't be written.
    """
    rasterio = import_rasterio("polygons")
    by_id = dict(zip(class_ids(classes), classes, strict=True))
    files = [(_GeoPackage if target.suffix == ".gpkg" else _GeoJson)(target, place) for target in targets]
    try:
        with warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning):
            with rasterio.open(labels) as source:
                shapes = rasterio.features.shapes(rasterio.band(source, 1), transform=source.transform)
                areas = ((polygon, by_id[int(i)], int(i)) for polygon, i in shapes if int(i) in by_id)
                while some := list(islice(areas, _CHUNK)):
                    for file in files:
                        file.add(some)
        for file in files:
            file.publish()
    finally:
        for file in files:
            file.discard()
    return [note for file in files for note in file.notes]


class _PolygonFile(ABC):
    """A file of polygons that appears under its name when it is whole.

    Attributes:
        notes: warnings for the user.
    """

    def __init__(self, target: Path, place: Georeference | None) -> None:
        self.target, self.crs = target, place.crs if place else None
        self.part = target.with_name(f".{target.stem}{PART}{target.suffix}")  # GDAL goes by the suffix
        self.notes: list[str] = []
        if self.crs is None:
            self.notes.append(f"{target}: the image has no CRS, so that the polygons are in its own coordinates")
        with self.writing():
            self.part.unlink(missing_ok=True)

    @abstractmethod
    def add(self, areas: Sequence[Area]) -> None:
        """Add polygons."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file under its temporary name."""

    def publish(self) -> None:
        """Finish the file and give it its name."""
        with self.writing():
            self.close()
            self.part.replace(self.target)

    def discard(self) -> None:
        """Remove what was written and not published."""
        with suppress(OSError):
            self.part.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the system's errors into ours."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.target, error) from error


class _GeoJson(_PolygonFile):
    """GeoJSON, a feature a line."""

    def __init__(self, target: Path, place: Georeference | None) -> None:
        super().__init__(target, place)
        self._warp = import_rasterio("polygons").warp
        if place is not None and self.crs is not None:
            corner = place.profile["transform"]
            try:
                self._warp.transform(self.crs, _WGS84, [corner.c], [corner.f])
            except Exception as error:  # rasterio lets several private errors of GDAL and PROJ through
                what = f"its CRS can't be converted ({error})"
                self.notes.append(f"{target}: {what}: the polygons are in the image's coordinates")
                self.crs = None
        with self.writing():
            self._file = self.part.open("w", encoding="utf-8")
            self._file.write('{"type": "FeatureCollection", "features": [')
        self._separator = "\n"

    def add(self, areas: Sequence[Area]) -> None:
        """Add polygons."""
        polygons = [polygon for polygon, _, _ in areas]
        if self.crs is not None:
            polygons = self._warp.transform_geom(self.crs, _WGS84, polygons, precision=_DIGITS)
        with self.writing():
            for polygon, (_, info, identity) in zip(polygons, areas, strict=True):
                properties = {"class": info.name, "id": identity, "color": _hex(info)}
                feature = {"type": "Feature", "properties": properties, "geometry": polygon}
                self._file.write(self._separator + json.dumps(feature))
                self._separator = ",\n"

    def close(self) -> None:
        """Write the end."""
        self._file.write("\n]}\n")
        self._file.close()

    def discard(self) -> None:
        """Remove what was written and not published."""
        with suppress(OSError):  # a full disk
            self._file.close()
        super().discard()


class _GeoPackage(_PolygonFile):
    """GeoPackage with one layer, named as the file."""

    def __init__(self, target: Path, place: Georeference | None) -> None:
        super().__init__(target, place)
        self._pyogrio, self._begun = import_pyogrio(target), False
        self.discard()  # a journal that a kill left would be played back into the new file

    def add(self, areas: Sequence[Area]) -> None:
        """Add polygons."""
        fields = {
            "class": np.array([info.name for _, info, _ in areas], object),
            "id": np.array([identity for _, _, identity in areas], np.int32),
            "color": np.array([_hex(info) for _, info, _ in areas], object),
        }
        with self.writing(), warnings.catch_warnings(action="ignore", category=UserWarning):  # of a missing CRS
            try:
                self._pyogrio.raw.write(
                    self.part,
                    np.array([_wkb(polygon) for polygon, _, _ in areas], object),
                    list(fields.values()),
                    list(fields),
                    layer=self.target.stem,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self.crs.to_wkt() if self.crs else None,
                    append=self._begun,
                )
            except RuntimeError as error:  # all of pyogrio's own
                raise OSError(None, f"{' '.join(str(error).split())} (the disk may be full)") from error
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


def import_pyogrio(target: Path) -> Any:
    """pyogrio; raises DataError where it isn't installed."""
    try:
        import pyogrio
    except ImportError as error:
        raise DataError(f"{target} needs pyogrio, which is not installed: pip install 'pfseg[geo]'") from error
    return pyogrio


def _hex(info: ClassInfo) -> str:
    return "#{:02x}{:02x}{:02x}".format(*info.color)


def _wkb(polygon: dict[str, Any]) -> bytes:
    """A GeoJSON polygon as well-known binary (OGC 06-103r4)."""
    rings = [np.asarray(ring, "<f8") for ring in polygon["coordinates"]]
    head = struct.pack("<BII", 1, _POLYGON, len(rings))
    return head + b"".join(struct.pack("<I", len(ring)) + ring.tobytes() for ring in rings)
