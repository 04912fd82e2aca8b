"""Scores of a network on whole images, in windows of one size so that memory and operators stay the same.

Shapes: image (H, W, 3) uint8 RGB; window batch (B, 3, h, w) float32; confusion (K, K) int64, [truth, prediction].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from pfseg.data.base import Sample
from pfseg.data.decode import even_contrast
from pfseg.data.loader import EvalLoader
from pfseg.data.normalise import Normalise
from pfseg.engine.pictures import ImageScores, Panel
from pfseg.errors import DataError
from pfseg.metrics.boundary import BoundaryScores
from pfseg.metrics.confusion import confusion_matrix
from pfseg.runtime import jt, world_size

Var = Any  # jittor.Var, which ships no types


@dataclass
class Evaluation:
    """Counts of one pass.

    Attributes:
        confusion: (K, K) int64, [truth, prediction].
        panels: this rank's first images.
        images: number of images.
        boundary: boundary scores, where they are wanted.
        details: scores of this rank's single images, where they are wanted.
        scenes: the same for whole scenes, where patches and scenes are scored.
    """

    confusion: np.ndarray
    panels: list[Panel] = field(default_factory=list)
    images: int = 0
    boundary: BoundaryScores | None = None
    details: ImageScores | None = None
    scenes: Evaluation | None = None

    def sum_ranks(self) -> None:
        """Make confusion, images and boundary scores those of all ranks; a single one has them already."""
        if world_size() == 1:
            return
        counts = sum_ranks(np.append(self.confusion.ravel(), self.images))
        self.confusion, self.images = counts[:-1].reshape(self.confusion.shape), int(counts[-1])
        if self.boundary:
            totals = self.boundary.totals
            self.boundary.totals = sum_ranks(totals.ravel()).reshape(totals.shape)


@dataclass
class _Image:
    """An image whose windows are on their way through the network."""

    sample: Sample
    size: tuple[int, int]  # at the network's resolution
    result: np.ndarray | None = None  # (K, h, w) logits, or (h, w) labels where no resizing follows
    windows_left: int = 0


class Evaluator:
    """Predicts every image of a loader and counts the confusion of its pixels.

    Windows lie side by side, the last row and column shifted back inside the image (a later window wins where they
    meet); an image smaller than a window is padded with the mean colour, which is cut off again.

    Args:
        loader: whole samples of this rank.
        num_classes: K.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
        contrast: standard deviation, in grey levels, that each image gets around its mean, see `even_contrast`; None
            leaves images as they are.
        window: (h, w) of the windows; None for whole images padded to a multiple of `stride`.
        stride: output stride of the network.
        batch_size: windows per forward pass, at most.
        batch_pixels: pixels per forward pass, at most, where that leaves a window; None for any number.
        min_size: smallest side that the network takes.
        scale: factor that images are resized by for the network; logits are resized back.
        ignore_index: label that is not counted.
        num_panels: images to keep for the panels.
        boundary: also measure boundary scores.
        details: makes what collects the scores of single images; None for none.
    """

    def __init__(
        self,
        loader: EvalLoader,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        window: tuple[int, int] | None,
        contrast: float | None = None,
        stride: int = 32,
        batch_size: int = 1,
        batch_pixels: int | None = None,
        min_size: int = 1,
        scale: float = 1.0,
        ignore_index: int = 255,
        num_panels: int = 4,
        boundary: bool = False,
        details: Callable[[], ImageScores] | None = None,
    ) -> None:
        self.loader, self.num_classes = loader, num_classes
        self.normalise, self.contrast = Normalise(mean, std), contrast
        self.window, self.stride, self.min_size = window, stride, min_size
        self.batch_size, self.batch_pixels, self.scale = batch_size, batch_pixels, scale
        self.ignore_index, self.num_panels, self.boundary = ignore_index, num_panels, boundary
        self.details = details

    def run(self, predict: Callable[[Var], Var], progress: Callable[[int, int], None]) -> Evaluation:
        """Predict all images.

        Args:
            predict: maps a normalised batch (B, 3, h, w) to logits (B, K, h, w), without gradients.
            progress: called with (images done, images in all) of this rank.

        Raises:
            DataError: no image, or none that can be read.
        """
        found = self._empty()
        progress(0, len(self.loader))
        for finished in self._predicted(predict):
            for sample, pred in finished:
                self._count(found, sample, pred)
            progress(found.images, len(self.loader))
        found.sum_ranks()
        if not found.images:
            raise DataError("no image could be read, so there is nothing to score; check the split (config: dataset)")
        return found

    def _empty(self) -> Evaluation:
        boundary = BoundaryScores(self.num_classes, self.ignore_index) if self.boundary else None
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        return Evaluation(confusion, boundary=boundary, details=self.details() if self.details else None)

    def _count(self, found: Evaluation, sample: Sample, pred: np.ndarray) -> None:
        confusion = confusion_matrix(pred, sample.mask, self.num_classes, self.ignore_index)
        found.confusion += confusion
        if found.boundary:
            found.boundary.add(pred, sample.mask)
        found.images += 1
        panel = Panel(sample.image, sample.mask, pred, sample.name)
        if len(found.panels) < self.num_panels:
            found.panels.append(panel)
        if found.details:
            found.details.add(panel, confusion)

    def _predicted(self, predict: Callable[[Var], Var]) -> Iterator[list[tuple[Sample, np.ndarray]]]:
        """After each batch the samples that are complete, with their label maps (H, W) uint8."""
        queue: list[tuple[_Image, int, int, np.ndarray]] = []
        for _, sample in self.loader:
            queue += self._windows(sample)
            while queue and (len(queue) >= self._at_once(queue[0][3].shape) or queue[0][3].shape != queue[-1][3].shape):
                yield self._predict(predict, queue)
        while queue:
            yield self._predict(predict, queue)

    def _windows(self, sample: Sample) -> list[tuple[_Image, int, int, np.ndarray]]:
        """(image, top, left, normalised window (3, h, w)) of a sample."""
        planes = self._normalised(sample)
        height, width = planes.shape[1:]
        image = _Image(sample, (height, width))
        h, w = self.window or (self._whole(height), self._whole(width))
        planes = np.pad(planes, ((0, 0), (0, max(0, h - height)), (0, max(0, w - width))))
        tops, lefts = window_starts(planes.shape[1], h), window_starts(planes.shape[2], w)
        image.windows_left = len(tops) * len(lefts)
        return [(image, y, x, planes[:, y : y + h, x : x + w]) for y in tops for x in lefts]

    def _at_once(self, shape: tuple[int, ...]) -> int:
        """How many windows of this (..., h, w) share a forward pass."""
        fitting = self.batch_size if self.batch_pixels is None else self.batch_pixels // math.prod(shape[-2:])
        return max(1, min(self.batch_size, fitting))

    def _whole(self, side: int) -> int:
        return max(self.min_size, -(-side // self.stride) * self.stride)

    def _normalised(self, sample: Sample) -> np.ndarray:
        """A sample's image at the network's resolution, (3, H, W) float32."""
        pixels = even_contrast(sample.image, self.contrast)
        if self.scale != 1.0:
            size = [max(1, round(side * self.scale)) for side in pixels.shape[:2]]
            pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC)
        planes = np.empty((3, *pixels.shape[:2]), np.float32)
        self.normalise(pixels, planes)
        return planes

    def _predict(
        self, predict: Callable[[Var], Var], queue: list[tuple[_Image, int, int, np.ndarray]]
    ) -> list[tuple[Sample, np.ndarray]]:
        """Send the first windows of one shape through the network; the samples that are complete by it."""
        shape = queue[0][3].shape
        count = next((i for i, item in enumerate(queue) if item[3].shape != shape), len(queue))
        batch = queue[: min(count, self._at_once(shape))]
        del queue[: len(batch)]
        with jt.no_grad():
            logits = predict(jt.array(np.stack([item[3] for item in batch])))
            if self.scale == 1.0:
                logits = jt.argmax(logits, 1)[0].uint8()
        results = logits.numpy()
        finished = []
        for (image, y, x, _), result in zip(batch, results, strict=True):
            height, width = image.size
            if image.result is None:
                image.result = np.empty((*result.shape[:-2], height, width), result.dtype)
            part = result[..., : height - y, : width - x]
            image.result[..., y : y + part.shape[-2], x : x + part.shape[-1]] = part
            image.windows_left -= 1
            if not image.windows_left:
                finished.append((image.sample, self._at_full_size(image.result, image.sample)))
        return finished

    def _at_full_size(self, result: np.ndarray, sample: Sample) -> np.ndarray:
        """Label map of a sample from labels, or from logits (K, h, w) at the network's resolution."""
        if self.scale == 1.0:
            return result
        return resize_planes(result, sample.mask.shape).argmax(0).astype(np.uint8)


def resize_planes(planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize (K, h, w) float32 to (K, H, W)."""
    size = (shape[1], shape[0])
    return np.array([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes])


def sum_ranks(counts: np.ndarray) -> np.ndarray:
    """Sum (N,) int64 or float64 over all ranks; whole numbers exactly up to 2**53."""
    # Jittor makes float64 float32 unless told not to, and has no sum of int64.
    return jt.array(counts, dtype="float64").mpi_all_reduce("add").numpy().astype(counts.dtype)


def window_starts(size: int, window: int) -> list[int]:
    """Starts of windows side by side that cover `size` >= `window`, the last one shifted back inside."""
    return sorted({min(start, size - window) for start in range(0, size, window)})
