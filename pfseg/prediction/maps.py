"""The files that the prediction of one image becomes, written as its rows come in.

| output | PNG and the like | GeoTIFF |
|---|---|---|
| classes | grey PNG of class ids | one band of class ids with a colour table |
| color | RGB PNG in class colours | RGB |
| overlay | the image under half of them | RGB |
| probabilities | .npy (H, W, K) float16 | one band for each class, half precision |
| polygons | GeoJSON in pixels | GeoJSON in longitude and latitude |
| geopackage | the same polygons in pixels | the same polygons in its CRS |

Where an image has pixels without data, `color` and `overlay` have an alpha channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, class_ids
from pfseg.prediction.files import NpyFile, PngFile, RowFile, TiffFile
from pfseg.prediction.image import Image
from pfseg.prediction.polygons import import_pyogrio, write_polygons
from pfseg.prediction.rows import Rows

SUFFIXES = {
    "classes": "",
    "color": "_color",
    "overlay": "_overlay",
    "probabilities": "_probs",
    "polygons": "",
    "geopackage": "",
}
_TRACED = {"polygons": ".geojson", "geopackage": ".gpkg"}  # from the class ids
_PART = 64  # rows that are coloured at a time


def target_name(stem: str, output: str, *, geotiff: bool) -> str:
    """File name of an output of the image `stem`."""
    end = _TRACED.get(output) or (".tif" if geotiff else ".npy" if output == "probabilities" else ".png")
    return f"{stem}{SUFFIXES[output]}{end}"


def nodata_id(ids: Sequence[int]) -> int:
    """Value of pixels without data among class ids: 255, or the next lower one that no class has."""
    return next(value for value in range(IGNORE, -1, -1) if value not in ids)


class Maps:
    """All outputs of one image; `publish` gives them their names once every row is written.

    Args:
        targets: output -> file.
        image: the open image.
        classes: the class table.
        geotiff: write GeoTIFFs with the image's georeference instead of PNGs.

    Attributes:
        warnings: oddities for the user, after `publish`.

    Raises:
        WriteError: by every method.
        DataError: rasterio or pyogrio is needed and not installed.
    """

    def __init__(
        self, targets: Mapping[str, Path], image: Image, classes: Sequence[ClassInfo], *, geotiff: bool
    ) -> None:
        self._image, self._classes, self._geotiff = image, classes, geotiff
        self.warnings: list[str] = []
        ids = class_ids(classes)
        self._nodata = nodata_id(ids)
        self._ids = np.full(256, self._nodata, np.uint16 if max(ids) > IGNORE else np.uint8)
        self._ids[: len(ids)] = ids
        self._palette = np.zeros((256, 4), np.uint8)
        self._palette[: len(classes)] = [(*info.color, 255) for info in classes]
        self._channels = 4 if image.has_nodata else 3
        self._files: dict[str, RowFile] = {}
        with ExitStack() as undo:
            undo.callback(self.discard)
            if "geopackage" in targets:
                import_pyogrio(targets["geopackage"])  # now, rather than at the end
            for output, path in targets.items():
                if output not in _TRACED:
                    self._files[output] = self._open(output, path)
            self._traced = [path for output, path in targets.items() if output in _TRACED]
            if self._traced and not (geotiff and "classes" in targets):  # they are traced from a GeoTIFF of classes
                self._files["labels"] = self._open("labels", self._traced[0].with_suffix(".labels.tif"))
            undo.pop_all()

    def write(self, rows: Rows) -> None:
        """Add the next rows to all files."""
        for top in range(0, len(rows.labels), _PART):
            part = slice(top, top + _PART)
            labels = rows.labels[part]
            for output, file in self._files.items():
                if output in ("classes", "labels"):
                    file.write(self._ids[labels][..., None])
                elif output == "probabilities":
                    assert rows.probabilities is not None
                    file.write(rows.probabilities[part])
                else:
                    colored = self._palette[labels]
                    if output == "overlay":
                        mixed = (rows.image[part].astype(np.uint16) + colored[..., :3]) // 2
                        colored[..., :3] = np.where(colored[..., 3:] > 0, mixed, 0)
                    file.write(colored[..., : self._channels])

    def publish(self) -> None:
        """Finish all files and give them their names."""
        for file in self._files.values():
            file.close()
        if self._traced:
            labels = self._files.pop("labels", None) or self._files["classes"]
            self.warnings += write_polygons(labels.part, self._traced, self._classes, self._image.georeference)
            if labels is not self._files.get("classes"):
                labels.discard()
        for file in self._files.values():
            file.publish()

    def discard(self) -> None:
        """Remove what was written and not published."""
        for file in self._files.values():
            file.discard()

    def _open(self, output: str, path: Path) -> RowFile:
        shape, labelled = self._image.shape, output in ("classes", "labels")
        dtype = self._ids.dtype if labelled else np.dtype(np.float16 if output == "probabilities" else np.uint8)
        channels = 1 if labelled else len(self._classes) if output == "probabilities" else self._channels
        if not (self._geotiff or output == "labels"):
            kind = NpyFile if output == "probabilities" else PngFile
            return kind(path, shape, channels=channels, dtype=dtype)
        names = {"probabilities": [info.name for info in self._classes]}.get(output, ["class"] if labelled else [])
        return TiffFile(
            path,
            shape,
            channels=channels,
            dtype=dtype,
            place=self._image.georeference,
            nodata=self._nodata if labelled and self._image.has_nodata else None,
            colors={int(self._ids[k]): info.color for k, info in enumerate(self._classes)} if labelled else None,
            names=names,
        )
