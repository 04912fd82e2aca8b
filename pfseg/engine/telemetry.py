"""What a training tells of itself besides losses and scores: gradient norms, memory and edge maps of samples.

Shapes: image (H, W, 3) uint8 RGB; edge map (h, w) uint8, the probability of an edge in 0..255.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pfseg.data.base import ClassInfo
from pfseg.data.decode import even_contrast
from pfseg.engine.evaluator import Evaluator
from pfseg.runtime import jt, world_size
from pfseg.tracking.panels import save_panels
from pfseg.tracking.samples import save_maps

Var = Any  # jittor.Var, which ships no types
_LARGEST_WINDOW = 1024  # pixels a side, where the evaluator takes whole images


def gradient_norms(model: Any, optimizer: Any) -> tuple[list[str], Var]:
    """Norms of the gradients that the optimizer holds, averaged over the ranks already.

    Returns:
        Names, `grad_norm` over all parameters and `grad_norm/<part>` for each of the network's parts (`layer0`, `head`,
        ...), and their values (T,) float32, which stay on the device.
    """
    parts = {id(parameter): name.partition(".")[0] for name, parameter in model.named_parameters()}
    squares: dict[str, Var] = {}
    for group in optimizer.param_groups:
        for parameter, gradient in zip(group["params"], group["grads"], strict=True):
            if not parameter.is_stop_grad():
                part = parts[id(parameter)]
                square = gradient.sqr().sum()
                squares[part] = squares[part] + square if part in squares else square
    names = ["grad_norm", *(f"grad_norm/{part}" for part in squares)]
    values = jt.concat([square.reshape(1) for square in squares.values()])
    return names, jt.concat([values.sum().reshape(1), values]).sqrt()


def memory_mib() -> dict[str, float]:
    """Memory in MiB, the mean over the ranks: `rank_mib` of the process, on GPUs also `gpu_mib` that Jittor holds."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    sizes = np.array([resident, jt.get_mem_info().total_cuda_used], np.float32) / 2**20
    if world_size() > 1:
        sizes = jt.array(sizes).mpi_all_reduce("mean").numpy()
    found = dict(zip(("rank_mib", "gpu_mib"), sizes.tolist(), strict=True))
    return found if jt.flags.use_cuda else {"rank_mib": found["rank_mib"]}


def save_samples(
    folder: Path,
    step: int,
    panels: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, str]],
    classes: Sequence[ClassInfo],
    model: Any,
    evaluator: Evaluator,
) -> dict[str, Any]:
    """Write pictures and maps of validation samples; returns the fields that name them in the row `val`.

    Args:
        folder: the run folder.
        step: of the run.
        panels: (image, mask, prediction, name) of each sample.
        classes: the class table.
        model: the network, in evaluation mode.
        evaluator: that found the panels.
    """
    path = f"samples/step_{step:06d}.png"
    save_panels(folder / path, panels, classes)
    edges = [predict_edges(model, evaluator, image) for image, *_ in panels]
    return {"panels": path, "samples": save_maps(folder, step, panels, edges)}


def predict_edges(model: Any, evaluator: Evaluator, image: np.ndarray) -> np.ndarray | None:
    """Finest edge map that a network finds in the first window of an image.

    Args:
        model: maps (1, 3, h, w) to `SegOutput`, in evaluation mode.
        evaluator: of which window, resolution and normalisation are taken.
        image: the whole image.

    Returns:
        The edge map of the image's upper left part, in its own pixels; None for a network without edge maps.
    """
    scale, image = evaluator.scale, even_contrast(image, evaluator.contrast)
    pixels = image if scale == 1.0 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    least, stride = evaluator.min_size, evaluator.stride
    wholes = [min(_LARGEST_WINDOW, max(least, -(-side // stride) * stride)) for side in pixels.shape[:2]]
    window = evaluator.window or wholes
    pixels = pixels[: window[0], : window[1]]
    height, width = pixels.shape[:2]
    planes = np.zeros((1, 3, *window), np.float32)
    evaluator.normalise(pixels, planes[0, :, :height, :width])
    with jt.no_grad():
        edges = model(jt.array(planes)).edge_logits
        if not edges:
            return None
        found = (255 * jt.sigmoid(edges[-1])).uint8().numpy()[0, 0, :height, :width]
    size = (min(image.shape[1], round(width / scale)), min(image.shape[0], round(height / scale)))
    return found if scale == 1.0 else cv2.resize(found, size, interpolation=cv2.INTER_LINEAR)
