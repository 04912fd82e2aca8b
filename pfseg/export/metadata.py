"""What an exported network says about itself: to QGIS's plugin Deepness, and to pfseg.

Each entry is JSON. Deepness reads `model_type`, `class_names`, `tile_size`, `tiles_overlap`, `seg_thresh`,
`seg_small_segment` and `resolution`; pfseg reads those of `pfseg.weights.onnx_file.NEEDED`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning

from pfseg.data.base import ClassInfo
from pfseg.data.inputs import spread
from pfseg.files import plain

_quiet = partial(warnings.catch_warnings, action="ignore", category=NotGeoreferencedWarning)
_LOOKED_AT = 16  # images whose ground resolution is read


def describe(
    checkpoint: Path,
    meta: Mapping[str, Any],
    classes: Sequence[ClassInfo],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    overlap: float,
    resolution: float | None,
) -> dict[str, str]:
    """Entries for a network that takes images of `size` px.

    Args:
        checkpoint: its file.
        meta: its metadata.
        classes: its classes.
        mean: mean of each channel, of images scaled to 0..1.
        std: standard deviation of each channel.
        size: side of its input in pixels.
        overlap: share of a tile that the next one covers too.
        resolution: metres that a pixel covers; None where it isn't known.
    """
    config = meta["config"]
    record = meta.get("input") or {key: config["dataset"].get(key) for key in ("bands", "stretch")}
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries = {
        "model_type": "Segmentor",
        "class_names": {str(label): info.name for label, info in enumerate(classes)},
        "tile_size": size,
        "tiles_overlap": round(100 * overlap),
        "seg_thresh": 0.0,  # the most probable class everywhere, however probable it is
        "seg_small_segment": 0,
        "bands": record["bands"],
        "stretch": record["stretch"],
        "mean": mean,
        "std": std,
        "classes": [{"name": info.name, "color": info.color, "id": info.id} for info in classes],
        "variant": config["model"].get("variant"),
        "checkpoint": {"file": checkpoint.name, "sha256": digest},
        "pfseg": dict(meta),
    }
    if resolution is not None:
        entries["resolution"] = 100 * resolution  # centimetres
    return {key: json.dumps(plain(value), allow_nan=False) for key, value in entries.items()}


def ground_resolution(files: Sequence[Path]) -> float | None:
    """Metres that a pixel of most of these images covers; None if they don't say, or differ."""
    found = set()
    for path in spread(files, _LOOKED_AT):
        with _quiet(), suppress(rasterio.errors.RasterioError), rasterio.open(path) as file:
            if file.crs is not None and file.crs.is_projected:
                metres = file.crs.linear_units_factor[1]
                found.add(round(abs(file.res[0]) * metres, 4))
    return found.pop() if len(found) == 1 else None
