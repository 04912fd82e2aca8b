"""Scores of single images, and the worst and best of them to look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfseg.metrics.confusion import scores

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


@dataclass
class ImageScores:
    """Collects the scores of images, and the pictures of the worst and the best.

    An image's mIoU is the mean over the classes that its mask or prediction holds.

    Args:
        class_names: K names.
        exclude: classes that the means leave out.
        num_pictures: how many of the worst and of the best to keep.
    """

    class_names: Sequence[str]
    exclude: Collection[str] = ()
    num_pictures: int = 4
    rows: list[ImageScore] = field(default_factory=list)
    worst: list[tuple[float, Panel]] = field(default_factory=list)
    best: list[tuple[float, Panel]] = field(default_factory=list)

    def add(self, panel: Panel, confusion: np.ndarray) -> None:
        """Take an image with its confusion matrix (K, K)."""
        found = scores(confusion, self.class_names, self.exclude)
        self.rows.append(ImageScore(panel.name, found["mIoU"], found["OA"]))
        if not np.isnan(found["mIoU"]):
            step = -(-max(panel.mask.shape) // _MOST_PIXELS)
            image, mask, pred = (part[::step, ::step].copy() for part in (panel.image, panel.mask, panel.pred))
            thin = Panel(image, mask, pred, panel.name)
            self.worst.append((found["mIoU"], thin))
            self.best.append((found["mIoU"], thin))
            self._sort()

    def save(self, path: Path) -> None:
        """Write everything to an .npz file, for rank 0 to read."""
        arrays: dict[str, np.ndarray] = {
            "names": np.array([row.name for row in self.rows], dtype=str),
            "scores": np.array([row[1:] for row in self.rows], np.float64).reshape(-1, 2),
        }
        for kind, chosen in (("worst", self.worst), ("best", self.best)):
            arrays[f"{kind}_names"] = np.array([panel.name for _, panel in chosen], dtype=str)
            arrays[f"{kind}_scores"] = np.array([score for score, _ in chosen], np.float64)
            for place, (_, panel) in enumerate(chosen):
                parts = {"image": panel.image, "mask": panel.mask, "pred": panel.pred}
                arrays |= {f"{kind}_{place}_{part}": array for part, array in parts.items()}
        np.savez(path, **arrays)

    def merge(self, path: Path) -> None:
        """Add what another rank has saved."""
        with np.load(path, allow_pickle=False) as file:
            pairs = zip(file["names"], file["scores"], strict=True)
            self.rows += [ImageScore(str(name), float(miou), float(share)) for name, (miou, share) in pairs]
            for kind, chosen in (("worst", self.worst), ("best", self.best)):
                values = zip(file[f"{kind}_scores"], file[f"{kind}_names"], strict=True)
                for place, (score, name) in enumerate(values):
                    image, mask, pred = (file[f"{kind}_{place}_{part}"] for part in ("image", "mask", "pred"))
                    chosen.append((float(score), Panel(image, mask, pred, str(name))))
        self._sort()

    def _sort(self) -> None:
        """Keep the outermost; of equal ones the first by name, so that the number of ranks makes no difference."""
        self.worst = sorted(self.worst, key=lambda one: (one[0], one[1].name))[: self.num_pictures]
        self.best = sorted(self.best, key=lambda one: (-one[0], one[1].name))[: self.num_pictures]
