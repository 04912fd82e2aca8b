"""The files that the prediction of one image becomes, written as its rows come in.

PNGs of class ids, colours, overlay and measures and .npy (H, W, K) float16 of probabilities, or GeoTIFFs of all of
them; polygons as GeoJSON and GeoPackage. `color` and `overlay` have an alpha channel where the image has pixels without
data. Measures of certainty are half-precision floats from 0 to 1, or whole percents in 8 bits, as always in PNGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, class_ids
from pfseg.data.display import displayed
from pfseg.data.reader import Image
from pfseg.prediction.files import NpyFile, PngFile, RowFile, TiffFile
from pfseg.prediction.polygons import load_pyogrio, write_polygons
from pfseg.prediction.rows import Rows

_SUFFIXES = {"classes": "", "probabilities": "_probs", "polygons": "", "geopackage": ""}  # else `_<output>`
_TRACED = {"polygons": ".geojson", "geopackage": ".gpkg"}  # from the class ids
_PART = 64  # rows that are coloured at a time
NOTHING = 255  # in percents: no data


def target_name(stem: str, output: str, *, geotiff: bool) -> str:
    """File name of an output of the image `stem`."""
    end = _TRACED.get(output) or (".tif" if geotiff else ".npy" if output == "probabilities" else ".png")
    return f"{stem}{_SUFFIXES.get(output, f'_{output}')}{end}"


class Maps:
    """All outputs of one image; `publish` gives them their names once every row is written.

    `targets` are the files of the outputs; with `geotiff` pixels become GeoTIFFs with the image's georeference.
    Overlays show the bands `display`, see `displayed`; `percent`: measures are whole percents.

    Raises:
        WriteError: by every method.
        DataError: pyogrio is needed and not installed.
    """

    def __init__(
        self,
        targets: Mapping[str, Path],
        image: Image,
        classes: Sequence[ClassInfo],
        *,
        geotiff: bool,
        display: Sequence[int] | None = None,
        percent: bool = False,
    ) -> None:
        self._image, self._classes, self._geotiff, self._display = image, classes, geotiff, display
        self._percent = percent or not geotiff
        self._partial = image.has_nodata or image.outline is not None  # whether pixels may have no class
        self.warnings: list[str] = []  # for the user, after `publish`
        ids = class_ids(classes)
        self._nodata = next(value for value in range(IGNORE, -1, -1) if value not in ids)
        self._ids = np.full(256, self._nodata, np.uint16 if max(ids) > IGNORE else np.uint8)
        self._ids[: len(ids)] = ids
        self._palette = np.zeros((256, 4), np.uint8)
        self._palette[: len(classes)] = [(*info.color, 255) for info in classes]
        self._channels = 4 if self._partial else 3
        self._files: dict[str, RowFile] = {}
        if "geopackage" in targets:
            load_pyogrio(targets["geopackage"])  # now, rather than at the end
        self._traced = [path for output, path in targets.items() if output in _TRACED]
        drawn = {output: path for output, path in targets.items() if output not in _TRACED}
        if self._traced and not (geotiff and "classes" in targets):  # they are traced from a GeoTIFF of classes
            drawn["labels"] = self._traced[0].with_suffix(".labels.tif")
        try:
            for output, path in drawn.items():
                self._files[output] = self._open(output, path)
        except BaseException:
            self.discard()
            raise

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
                elif output in rows.measures:
                    file.write(self._measure(rows.measures[output][part])[..., None])
                else:
                    colored = self._palette[labels]
                    if output == "overlay":
                        assert rows.image is not None
                        mixed = (displayed(rows.image[part], self._display).astype(np.uint16) + colored[..., :3]) // 2
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

    def _measure(self, values: np.ndarray) -> np.ndarray:
        if not self._percent:
            return values.astype(np.float16)
        return np.where(np.isnan(values), NOTHING, np.rint(100 * np.nan_to_num(values))).astype(np.uint8)

    def _open(self, output: str, path: Path) -> RowFile:
        image, classes = self._image, self._classes
        channels = self._channels
        dtype: np.dtype = np.dtype(np.uint8)
        described: dict[str, Any] = {"nodata": None, "colors": None, "names": []}
        if output in ("classes", "labels"):
            channels, dtype = 1, self._ids.dtype
            colors = {int(self._ids[k]): info.color for k, info in enumerate(classes)}
            described = {"nodata": self._nodata if self._partial else None, "colors": colors, "names": ["class"]}
        elif output == "probabilities":
            channels, dtype = len(classes), np.dtype(np.float16)
            described["names"] = [info.name for info in classes]
        elif output not in ("color", "overlay"):
            channels, described["names"] = 1, [f"{output} in percent" if self._percent else output]
            dtype = np.dtype(np.uint8 if self._percent else np.float16)
            if self._partial:
                described["nodata"] = NOTHING if self._percent else np.nan
        if self._geotiff or output == "labels":
            return TiffFile(path, image.shape, image.georeference, channels=channels, dtype=dtype, **described)
        kind = NpyFile if output == "probabilities" else PngFile
        return kind(path, image.shape, channels=channels, dtype=dtype)
