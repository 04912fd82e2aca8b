"""Prediction and scoring of whole images, and of scenes stitched from the predictions of their patches.

Shapes: image (H, W, 3) uint8 RGB; window (3, h, w) float32; probabilities (K, H, W) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from pfseg.data.base import Sample
from pfseg.data.display import displayed
from pfseg.data.loader import EvalLoader
from pfseg.data.normalise import Normalise
from pfseg.data.preparation.places import Place
from pfseg.data.reader import even_contrast
from pfseg.data.tiling import Window
from pfseg.data.transforms import resized
from pfseg.engine.scoring import Evaluation, ImageScores, Panel
from pfseg.inference.blending import Blender
from pfseg.inference.sliding import SlidingWindows, WindowGrid, most_probable
from pfseg.inference.views import Flips, Network, Views, labels

if TYPE_CHECKING:
    from pfseg.models.network import SegmentationNetwork

_EDGE_WINDOW = (1024, 1024)  # part of an image whose edges are predicted, where whole images are
Progress = Callable[[int, int], None]  # images done, images in all, of this rank


@dataclass
class _Pending:
    """An image whose windows are on their way through the network."""

    sample: Sample
    size: tuple[int, int]  # at the network's scale
    windows_left: int
    result: np.ndarray | None = None  # (K, h, w) logits, or (h, w) labels where no resizing follows


class _Part(NamedTuple):
    """A window of an image; `planes` are padded to its full size."""

    image: _Pending
    window: Window
    planes: np.ndarray


@dataclass(eq=False)
class Evaluator:
    """Predicts every image of a loader and scores it.

    Windows lie side by side, the last row and column shifted back inside the image (a later window wins where they
    meet); an image smaller than a window is padded with the mean colour, which is cut off again.
    """

    loader: EvalLoader  # whole samples of this rank
    _: KW_ONLY
    num_classes: int
    mean: Sequence[float]  # per channel, of images scaled to 0..1
    std: Sequence[float]
    contrast: float | None  # see `even_contrast`
    window: tuple[int, int] | None  # (h, w); None for whole images padded to a multiple of `stride`
    stride: int  # output stride of the network
    batch_size: int  # windows per forward pass, at most
    batch_pixels: int | None  # pixels per forward pass, at most, where that leaves a window
    min_size: int  # smallest side that the network takes
    scale: float  # factor that images are resized by for the network; logits are resized back
    ignore_index: int  # label that is not counted
    num_panels: int  # images to keep for the panels
    display: Sequence[int] | None = None  # bands that panels show, see `displayed`
    boundary: bool = False  # also measure boundary scores
    details: Callable[[], ImageScores] | None = None  # makes what collects the scores of single images

    def __post_init__(self) -> None:
        """Lay out the windows."""
        self.grid = WindowGrid(self.window, 0.0, self.stride, self.min_size)
        self._normalise = Normalise(self.mean, self.std)
        self.wants_logits = self.scale != 1.0  # to be resized

    def run(self, network: Network, progress: Progress) -> Evaluation:
        """Predict all images; raises DataError if there is none that can be read."""
        evaluation = self._new_evaluation()
        progress(0, len(self.loader))
        for finished in self._predictions(network):
            for sample, pred in finished:
                evaluation.add(sample, pred)
            progress(evaluation.images, len(self.loader))
        evaluation.sum_ranks()
        return evaluation

    def normalised(self, image: np.ndarray) -> np.ndarray:
        """An image at the network's scale, (3, H, W) float32."""
        pixels = even_contrast(image, self.contrast)
        if self.scale != 1.0:
            size = [max(1, round(side * self.scale)) for side in pixels.shape[:2]]
            pixels = resized(pixels, (size[0], size[1]), cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC)
        planes = np.empty((image.shape[2], *pixels.shape[:2]), np.float32)
        self._normalise(pixels, planes)
        return planes

    def shown(self, panels: Sequence[Panel]) -> list[Panel]:
        """Panels with images in three bands."""
        return [panel._replace(image=displayed(panel.image, self.display)) for panel in panels]

    def edges(self, model: SegmentationNetwork, image: np.ndarray) -> np.ndarray | None:
        """Finest edge map of a network, in evaluation mode, in the first window of an image.

        Returns:
            (h, w) uint8, the probability of an edge in 0..255 in the image's upper left part, in its own pixels; None
            for a network without edge maps.
        """
        from pfseg.runtime import jt

        height, width = self.grid.size or _EDGE_WINDOW
        planes = self.normalised(image)[:, :height, :width]
        with jt.no_grad():
            edges = model(jt.array(self.grid.pad(planes)[None])).edge_logits
            if not edges:
                return None
            size = planes.shape[1:]
            edge: np.ndarray = (255 * jt.sigmoid(edges[-1])).uint8().numpy()[0, 0, : size[0], : size[1]]
        if self.scale == 1.0:
            return edge
        size = tuple(min(whole, round(side / self.scale)) for whole, side in zip(image.shape, size, strict=False))
        return np.asarray(cv2.resize(edge, size[::-1], interpolation=cv2.INTER_LINEAR))

    def _new_evaluation(self, *, full: bool = True) -> Evaluation:
        """What counts the images; without boundary scores and those of single images unless `full`."""
        boundary, details = self.boundary and full, self.details if full else None
        return Evaluation(self.num_classes, self.ignore_index, self.num_panels, boundary=boundary, details=details)

    def _predictions(self, network: Network) -> Iterator[list[tuple[Sample, np.ndarray]]]:
        """After each batch the samples that are complete, with their label maps (H, W) uint8."""
        queue: list[_Part] = []
        for _, sample in self.loader:
            planes = self.normalised(sample.image)
            size = planes.shape[1], planes.shape[2]
            windows = self.grid.windows(size)
            pending = _Pending(sample, size, len(windows))
            queue += [_Part(pending, window, self.grid.pad(planes[:, *window.slices])) for window in windows]
            while queue and (
                len(queue) >= self._at_once(queue[0].planes.shape) or queue[0].planes.shape != queue[-1].planes.shape
            ):
                yield self._predict(network, queue)
        while queue:
            yield self._predict(network, queue)

    def _at_once(self, shape: Sequence[int]) -> int:
        """How many windows of this (..., h, w) share a forward pass."""
        fitting = self.batch_size if self.batch_pixels is None else self.batch_pixels // math.prod(shape[-2:])
        return max(1, min(self.batch_size, fitting))

    def _predict(self, network: Network, queue: list[_Part]) -> list[tuple[Sample, np.ndarray]]:
        """Predict the first windows of one size in the queue; returns the samples that this completes."""
        shape = queue[0].planes.shape
        count = next((i for i, part in enumerate(queue) if part.planes.shape != shape), len(queue))
        batch = queue[: min(count, self._at_once(shape))]
        del queue[: len(batch)]
        planes = np.stack([part.planes for part in batch])
        results = network(planes) if self.wants_logits else labels(network, planes)
        finished = []
        for (image, window, _), result in zip(batch, results, strict=True):
            if image.result is None:
                image.result = np.empty((*result.shape[:-2], *image.size), result.dtype)
            image.result[..., *window.slices] = result[..., : window.shape[0], : window.shape[1]]
            image.windows_left -= 1
            if not image.windows_left:
                finished.append((image.sample, self._labels(image.result, image.sample)))
        return finished

    def _labels(self, result: np.ndarray, sample: Sample) -> np.ndarray:
        """Label map of a sample from labels, or from logits or probabilities (K, h, w) at the network's scale."""
        return result if result.ndim == 2 else most_probable(self._at_full_size(result, sample))

    def _at_full_size(self, planes: np.ndarray, sample: Sample) -> np.ndarray:
        """Resize (K, h, w) float32 to the size of a sample."""
        if self.scale == 1.0:
            return planes
        size = sample.mask.shape[::-1]
        return np.array([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes])


@dataclass(eq=False, kw_only=True)
class BlendingEvaluator(Evaluator):
    """Predicts overlapping windows in several views, see `SlidingWindows`."""

    overlap: float  # share of a window that the next one covers too
    scales: Sequence[float]
    flips: Flips

    def __post_init__(self) -> None:
        """Lay out the windows."""
        super().__post_init__()
        self.grid = replace(self.grid, overlap=self.overlap)

    def _predictions(self, network: Network) -> Iterator[list[tuple[Sample, np.ndarray]]]:
        sliding = self._sliding(network)
        for _, sample in self.loader:
            planes = self.normalised(sample.image)
            result = sliding.labels(planes) if self.scale == 1.0 else sliding.probabilities(planes)
            yield [(sample, self._labels(result, sample))]

    def _sliding(self, network: Network) -> SlidingWindows:
        at_once = self._at_once(self.grid.size) if self.grid.size else 1
        views = Views(self.scales, self.flips, self.stride, self.min_size)
        return SlidingWindows([network], self.num_classes, self.grid, views, at_once)


@dataclass(eq=False, kw_only=True)
class SceneEvaluator(BlendingEvaluator):
    """Stitches the scenes that patches were cut from.

    In a scene every pixel counts once: its probabilities are the mean over the patches that hold it, weighted by
    `blend_weights`. Pixels of patches that were left out are ignored.

    The loader gives all of a scene's patches one after the other, row by row.
    """

    places: Sequence[Place]  # of each sample of the data set
    patches: bool  # also score the patches

    def run(self, network: Network, progress: Progress) -> Evaluation:
        """Predict all scenes; returns what `Evaluator.run` does for patches, with `scenes`, or for the scenes alone."""
        patches, scenes = self._new_evaluation(full=self.patches), self._new_evaluation()
        sliding, samples = self._sliding(network), self._samples(progress)
        for name, indices in groupby(self.loader.indices, key=lambda index: self.places[index].scene):
            places = [self.places[index] for index in indices]
            size, read = places[0].size, patches.images
            image = np.zeros((*size, len(self.mean)), np.uint8)
            scene = Sample(image, np.full(size, self.ignore_index, np.uint8), name)
            pred = np.zeros(size, np.uint8)
            blender = Blender(self.num_classes, size, [place.window for place in places])
            probabilities = self._probabilities(sliding, zip(places, samples, strict=False), scene, patches)
            for row in blender.rows:
                for block, mean in blender.add(row, probabilities):
                    pred[block.slices] = mean.argmax(0)
            if patches.images > read:
                scenes.add(scene, pred)
        scenes.sum_ranks()
        if not self.patches:
            return scenes
        patches.sum_ranks()
        patches.scenes = scenes
        return patches

    def _samples(self, progress: Progress) -> Iterator[Sample | None]:
        """Every patch of the loader; None for one that could not be read."""
        progress(0, len(self.loader))
        read = iter(self.loader)
        following = next(read, None)
        for done, index in enumerate(self.loader.indices, 1):
            if following is None or following[0] != index:
                yield None
            else:
                progress(done, len(self.loader))
                yield following[1]
                following = next(read, None)

    def _probabilities(
        self, sliding: SlidingWindows, pairs: Iterable[tuple[Place, Sample | None]], scene: Sample, patches: Evaluation
    ) -> Iterator[np.ndarray | None]:
        """Probabilities of each patch of a scene, which gets its image and labels."""
        for place, sample in pairs:
            if sample is None:
                yield None
                continue
            planes = self._at_full_size(sliding.probabilities(self.normalised(sample.image)), sample)
            window = place.window
            inside = np.s_[: window.shape[0], : window.shape[1]]  # without padding
            scene.image[window.slices], scene.mask[window.slices] = sample.image[inside], sample.mask[inside]
            patches.add(sample, most_probable(planes))
            yield planes
