"""Maps of the validation samples as files, for loggers that overlay them, and pictures made of them.

Rank 0 writes `samples/0_image.jpg` and `0_mask.png` once and `samples/step_000123_0_pred.png`, `..._edge.jpg` with each
validation; the driver reads them. Label maps are images of ids, 255 without a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pfseg.data.edges import edge_map
from pfseg.files import write_atomic
from pfseg.tracking.records import MapFiles

LARGEST = 1024  # pixels of the longer side; larger images are scaled down
_BOTH, _MISSED, _FALSE = (46, 160, 67), (255, 140, 0), (40, 110, 255)  # RGB: found, only in the truth, only predicted
_GAP = 8


class SampleMaps(NamedTuple):
    """A validation sample, read back; all uint8."""

    name: str
    image: np.ndarray  # (H, W, 3), RGB
    mask: np.ndarray  # (H, W), the truth
    pred: np.ndarray  # (H, W)
    edge: np.ndarray | None  # (h, w) of the upper left, h <= H, w <= W: probability of an edge in 0..255


def save_maps(
    folder: Path,
    step: int,
    panels: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
    edges: Sequence[np.ndarray | None],
) -> list[MapFiles]:
    """Write the maps of the validation at `step` into a run folder; returns the files of each sample.

    `panels` are image, mask, prediction and name, as in `SampleMaps`, of the same samples at every step.

    Raises:
        WriteError: a file can't be written.
    """
    rows: list[MapFiles] = []
    for index, ((image, mask, pred, name), edge) in enumerate(zip(panels, edges, strict=True)):
        fixed, now = f"samples/{index}", f"samples/step_{step:06d}_{index}"
        row = MapFiles(name=name, image=f"{fixed}_image.jpg", mask=f"{fixed}_mask.png", pred=f"{now}_pred.png")
        scale = min(1.0, LARGEST / max(mask.shape))
        if not (folder / row["mask"]).exists():
            _write(folder / row["image"], image[..., ::-1], scale, cv2.INTER_AREA)
            _write(folder / row["mask"], mask, scale, cv2.INTER_NEAREST)
        _write(folder / row["pred"], pred, scale, cv2.INTER_NEAREST)
        if edge is not None:
            row["edge"] = f"{now}_edge.jpg"
            _write(folder / row["edge"], edge, scale, cv2.INTER_AREA)
        rows.append(row)
    return rows


def read_maps(folder: Path, rows: Sequence[MapFiles]) -> list[SampleMaps]:
    """Read what `save_maps` wrote; samples whose files have gone are left out."""
    samples = []
    for row in rows:
        names = (row["image"], row["mask"], row["pred"], row.get("edge"))
        image, mask, pred, edge = (
            cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED) if name else None for name in names
        )
        if image is not None and mask is not None and pred is not None:
            samples.append(SampleMaps(row["name"], np.ascontiguousarray(image[..., ::-1]), mask, pred, edge))
    return samples


def boundary_picture(sample: SampleMaps) -> np.ndarray:
    """(H, W, 3) RGB: the image pale, on it class boundaries: green found, orange missed, blue only predicted."""
    truth, pred = (edge_map(labels, thickness=2).astype(bool) for labels in (sample.mask, sample.pred))
    picture = 255 - (255 - sample.image) // 3
    picture[truth & ~pred], picture[pred & ~truth], picture[truth & pred] = _MISSED, _FALSE, _BOTH
    return picture


def edge_picture(sample: SampleMaps, rule: str, thickness: int) -> np.ndarray:
    """(h, 2w + 8, 3) RGB: the predicted edge probability beside the edge label, of a sample with an edge map."""
    assert sample.edge is not None
    height, width = sample.edge.shape
    label = 255 * edge_map(sample.mask, rule=rule, thickness=thickness)[:height, :width]
    gap = np.full((height, _GAP, 3), _FALSE, np.uint8)
    return np.hstack([np.dstack([sample.edge] * 3), gap, np.dstack([label] * 3)])


def _write(path: Path, pixels: np.ndarray, scale: float, interpolation: int) -> None:
    if scale < 1.0:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    write_atomic(path, cv2.imencode(path.suffix, pixels, options)[1].tobytes())
