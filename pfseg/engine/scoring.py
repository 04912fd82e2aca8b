"""Scores of images: of all together, of single ones, and the worst and best of them to look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfseg.data.base import Sample
from pfseg.devices import world_size
from pfseg.engine.ranks import sum_ranks
from pfseg.errors import DataError
from pfseg.metrics.boundary import BoundaryScores
from pfseg.metrics.confusion import confusion_matrix, scores

_MOST_PIXELS = 2048  # larger sides are thinned: pictures show less


class Panel(NamedTuple):
    """An image to look at: image (H, W, 3) uint8 RGB, mask and prediction (H, W), name."""

    image: np.ndarray
    mask: np.ndarray
    pred: np.ndarray
    name: str


class ImageScore(NamedTuple):
    """Scores of one image in percent; NaN without a labelled pixel."""

    name: str
    miou: float
    accuracy: float


class ImageScores:
    """Scores of single images, and the pictures of the worst and the best of them.

    An image's mIoU is the mean over the classes that its mask or prediction holds, without those to `exclude`.

    Attributes:
        rows: scores of all images.
        worst: mIoU and picture of the `num_pictures` worst, from the worst upwards.
        best: likewise, from the best downwards.
    """

    def __init__(self, class_names: Sequence[str], exclude: Collection[str], num_pictures: int) -> None:
        self.class_names, self.exclude, self.num_pictures = class_names, exclude, num_pictures
        self.rows: list[ImageScore] = []
        self.worst: list[tuple[float, Panel]] = []
        self.best: list[tuple[float, Panel]] = []

    def add(self, panel: Panel, confusion: np.ndarray) -> None:
        """Include an image with its confusion matrix (K, K)."""
        result = scores(confusion, self.class_names, self.exclude)
        self.rows.append(ImageScore(panel.name, result["mIoU"], result["OA"]))
        if not np.isnan(result["mIoU"]):
            step = -(-max(panel.mask.shape) // _MOST_PIXELS)
            image, mask, pred = (part[::step, ::step].copy() for part in panel[:3])
            self._keep(result["mIoU"], Panel(image, mask, pred, panel.name))

    def _keep(self, *pair: *tuple[float, Panel]) -> None:
        """Keep the outermost; of equal ones the first by name, so that the number of ranks makes no difference."""
        self.worst = sorted([*self.worst, pair], key=lambda pair: (pair[0], pair[1].name))[: self.num_pictures]
        self.best = sorted([*self.best, pair], key=lambda pair: (-pair[0], pair[1].name))[: self.num_pictures]

    def save(self, path: Path) -> None:
        """Write everything to an .npz file, for rank 0 to read."""
        panels = list({id(pair): pair for pair in (*self.worst, *self.best)}.values())  # few images are in both
        arrays: dict[str, np.ndarray] = {
            "names": np.array([row.name for row in self.rows], dtype=str),
            "scores": np.array([row[1:] for row in self.rows], np.float64).reshape(-1, 2),
            "panel_names": np.array([panel.name for _, panel in panels], dtype=str),
            "panel_scores": np.array([score for score, _ in panels], np.float64),
        }
        for number, (_, panel) in enumerate(panels):
            arrays |= {f"{number}_{part}": array for part, array in zip(panel._fields, panel[:3], strict=False)}
        np.savez(path, **arrays)

    def merge(self, path: Path) -> None:
        """Include what another rank has saved."""
        with np.load(path, allow_pickle=False) as file:
            pairs = zip(file["names"], file["scores"], strict=True)
            self.rows += [ImageScore(str(name), float(miou), float(share)) for name, (miou, share) in pairs]
            for number, (score, name) in enumerate(zip(file["panel_scores"], file["panel_names"], strict=True)):
                image, mask, pred = (file[f"{number}_{part}"] for part in Panel._fields[:3])
                self._keep(float(score), Panel(image, mask, pred, str(name)))


NewDetails = Callable[[], ImageScores]


class Evaluation:
    """Scores of images, counted one by one.

    Attributes:
        confusion: (K, K) int64, [truth, prediction].
        images: number of images.
        panels: this rank's first `num_panels` images.
        boundary: boundary scores, where they are wanted.
        details: scores of this rank's single images, where they are wanted.
        scenes: the same for whole scenes, where patches and scenes are scored.
    """

    def __init__(
        self, num_classes: int, ignore_index: int, num_panels: int, *, boundary: bool, details: NewDetails | None
    ) -> None:
        self.ignore_index, self.num_panels = ignore_index, num_panels
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.images = 0
        self.panels: list[Panel] = []
        self.boundary = BoundaryScores(num_classes, ignore_index) if boundary else None
        self.details = details() if details else None
        self.scenes: Evaluation | None = None

    def add(self, sample: Sample, pred: np.ndarray) -> None:
        """Count an image and its label map (H, W) uint8."""
        confusion = confusion_matrix(pred, sample.mask, len(self.confusion), self.ignore_index)
        self.confusion += confusion
        self.images += 1
        if self.boundary:
            self.boundary.add(pred, sample.mask)
        panel = Panel(sample.image, sample.mask, pred, sample.name)
        if len(self.panels) < self.num_panels:
            self.panels.append(panel)
        if self.details:
            self.details.add(panel, confusion)

    def sum_ranks(self) -> None:
        """Make confusion, images and boundary scores those of all ranks; raises DataError without any image."""
        if world_size() > 1:
            counts = sum_ranks(np.append(self.confusion.ravel(), self.images))
            self.confusion, self.images = counts[:-1].reshape(self.confusion.shape), int(counts[-1])
            if self.boundary:
                totals = self.boundary.totals
                self.boundary.totals = sum_ranks(totals.ravel()).reshape(totals.shape)
        if not self.images:
            raise DataError("no image could be read, so there is nothing to score; check the split (config: dataset)")
