"""Pictures of validation samples, and the edges that the network sees in them.

Shapes: image (H, W, 3) uint8 RGB; edge map (h, w) uint8, the probability of an edge in 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.data.base import ClassInfo
from pfseg.engine.evaluator import Evaluator
from pfseg.engine.scoring import Panel
from pfseg.models.network import SegmentationNetwork
from pfseg.runtime import jt
from pfseg.tracking.panels import save_panels
from pfseg.tracking.samples import save_maps

_LARGEST_WINDOW = 1024  # pixels a side, where the evaluator takes whole images


def save_samples(
    folder: Path,
    step: int,
    panels: Sequence[Panel],
    classes: Sequence[ClassInfo],
    model: SegmentationNetwork,
    evaluator: Evaluator,
) -> dict[str, Any]:
    """Write pictures and maps of validation samples.

    Args:
        folder: the run folder.
        step: of the run.
        panels: the samples.
        classes: the class table.
        model: the network, in evaluation mode.
        evaluator: made the panels.

    Returns:
        The fields of the row `val` that name the files.
    """
    path = f"samples/step_{step:06d}.png"
    save_panels(folder / path, panels, classes)
    edges = [predict_edges(model, evaluator, panel.image) for panel in panels]
    return {"panels": path, "samples": save_maps(folder, step, panels, edges)}


def predict_edges(model: SegmentationNetwork, evaluator: Evaluator, image: np.ndarray) -> np.ndarray | None:
    """Finest edge map of a network in the first window of an image.

    Args:
        model: maps (1, 3, h, w) to `SegOutput`, in evaluation mode.
        evaluator: its windows, scale and normalisation are used.
        image: the whole image.

    Returns:
        The edge map of the image's upper left part, in its own pixels; None for a network without edge maps.
    """
    height, width = evaluator.grid.size or (_LARGEST_WINDOW, _LARGEST_WINDOW)
    planes = evaluator.normalised(image)[:, :height, :width]
    with jt.no_grad():
        edges = model(jt.array(evaluator.grid.pad(planes)[None])).edge_logits
        if not edges:
            return None
        found: np.ndarray = (255 * jt.sigmoid(edges[-1])).uint8().numpy()[0, 0, : planes.shape[1], : planes.shape[2]]
    if evaluator.scale == 1.0:
        return found
    size = [
        min(whole, round(side / evaluator.scale)) for whole, side in zip(image.shape, planes.shape[1:], strict=False)
    ]
    return np.asarray(cv2.resize(found, size[::-1], interpolation=cv2.INTER_LINEAR))
