"""Boundary F-score of a label map, beside the published way: `make bench-eval`.

The published way, written anew from its description: for each class and threshold both boundaries are dilated by a
disk with `skimage.morphology.binary_dilation`. scikit-image is no dependency of pfseg: where it is not installed,
`cv2.dilate` takes its place, which gives the same pixels several times faster (the table says which one ran). Both
sides take turns on the same maps, 800x800 px of 16 classes at 4 thresholds; medians of the processor time are shown,
which another job on the machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from pfseg.metrics.boundary import THRESHOLDS, boundary_f

SIZE, CLASSES = 800, 16


def dilate_skimage(mask: np.ndarray, disk: np.ndarray) -> np.ndarray:
    """The published call."""
    from skimage.morphology import binary_dilation

    return binary_dilation(mask, disk)


def dilate_opencv(mask: np.ndarray, disk: np.ndarray) -> np.ndarray:
    """The same pixels by OpenCV."""
    return cv2.dilate(mask.view(np.uint8), disk.astype(np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Boundary of a binary mask (H, W)."""
    right, below, corner = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def published(
    pred: np.ndarray, mask: np.ndarray, dilate: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[list[float]]:
    """F-scores by threshold and class, both boundaries dilated by a disk for each."""
    scores = []
    for threshold in THRESHOLDS:
        radius = math.ceil(threshold * math.hypot(*mask.shape))
        rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disk = rows**2 + columns**2 <= radius**2
        scores.append([])
        for label in range(CLASSES):
            edges = [boundary(part == label) for part in (pred, mask)]
            grown = [dilate(edge, disk) for edge in edges]
            precision = (edges[0] & grown[1]).sum() / edges[0].sum()
            recall = (edges[1] & grown[0]).sum() / edges[1].sum()
            scores[-1].append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return scores


def make_maps(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A label map of ragged areas, `cells` a side, and a prediction whose outlines are a few pixels off."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, CLASSES, (cells, cells), dtype=np.uint8)
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32) * (cells / SIZE)
    maps = []
    for _ in range(2):
        shift = [cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE)).astype(np.float32), (0, 0), 4) for _ in range(2)]
        at = [np.clip(part + 2 * noise, 0, cells - 1) for part, noise in zip((xs, ys), shift, strict=True)]
        maps.append(cv2.remap(coarse, at[0], at[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE))
    return maps[0], maps[1]


def bench(name: str, cells: int, rounds: int, table: Table) -> None:
    """Time both ways in turns, after checking that they agree."""
    pred, mask = make_maps(cells)
    dilate = dilate_skimage if importlib.util.find_spec("skimage") else dilate_opencv
    radii = [math.ceil(threshold * math.hypot(SIZE, SIZE)) for threshold in THRESHOLDS]
    scores = boundary_f(pred, mask, radii)
    expected = published(pred, mask, dilate)
    np.testing.assert_allclose(np.array([scores[k] for k in range(CLASSES)]).T, expected, atol=1e-9)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for key, work in (
            ("ours", lambda: boundary_f(pred, mask, radii)),
            ("theirs", lambda: published(pred, mask, dilate)),
        ):
            start = time.process_time()
            work()
            times[key].append(time.process_time() - start)
    ours, theirs = (statistics.median(times[key]) for key in ("ours", "theirs"))
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    library = dilate.__name__.removeprefix("dilate_")
    table.add_row(name, f"{theirs:.2f} s ({library})", f"{1000 * ours:.1f} ms", f"{ratio:.0f} times faster")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    table = Table("label map", "published way", "pfseg", "ratio", title=f"medians of {arguments.rounds} rounds")
    bench("areas of some 80 px", 10, arguments.rounds, table)
    bench("areas of some 20 px", 40, arguments.rounds, table)
    Console().print(table)


if __name__ == "__main__":
    main()
