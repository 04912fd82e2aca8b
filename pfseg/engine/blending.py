"""Scores with overlapping windows, several views of each, and of whole scenes put together from patches.

Shapes: image (H, W, 3) uint8 RGB; probabilities (K, H, W) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pfseg.data.base import Sample
from pfseg.data.loader import EvalLoader
from pfseg.data.preparation.places import Place
from pfseg.engine.evaluator import Evaluation, Evaluator, Var, resize_planes
from pfseg.errors import DataError
from pfseg.inference.windows import Blend, Flips, Inference
from pfseg.runtime import jt


class BlendingEvaluator(Evaluator):
    """Predicts as `Inference` does, and can put the scenes together that patches were cut from.

    In a scene every pixel counts once: its probabilities are the mean over the patches that hold it, weighted by
    `blend_weights`. Pixels of patches that were left out are ignored.

    Args:
        loader: whole samples of this rank; for scenes all of a scene's patches one after the other, row by row.
        overlap: see `Inference`, as for the next two.
        scales: factors above 0.
        flips: mirrored views.
        places: where each sample of the data set lies, to score scenes; None to score the samples alone.
        patches: also score the samples where scenes are scored.
        options: see `Evaluator`.
    """

    def __init__(
        self,
        loader: EvalLoader,
        *,
        overlap: float = 0.0,
        scales: Sequence[float] = (1.0,),
        flips: Flips = "none",
        places: Sequence[Place] | None = None,
        patches: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(loader, **options)
        self.overlap, self.scales, self.flips = overlap, scales, flips
        self.places, self.patches = places, patches

    def run(self, predict: Callable[[Var], Var], progress: Callable[[int, int], None]) -> Evaluation:
        """Predict all images; see `Evaluator.run`. The result is that of the scenes if only they are scored."""
        if self.places is None:
            return super().run(predict, progress)
        patches, scenes = self._empty(), self._empty()
        scene: _Scene | None = None
        inference = self._inference(predict)
        progress(0, len(self.loader))
        for done, (index, sample) in enumerate(self.loader, 1):
            place = self.places[index]
            if scene is None or scene.name != place.scene:
                self._finish(scene, scenes)
                scene = _Scene(place, self.num_classes, self.ignore_index)
            probabilities = self._probabilities(inference, sample)
            if self.patches:
                self._count(patches, sample, probabilities.argmax(0).astype(np.uint8))
            scene.add(place, sample, probabilities)
            progress(done, len(self.loader))
        self._finish(scene, scenes)
        scenes.sum_ranks()
        if not scenes.images:
            raise DataError("no image could be read, so there is nothing to score; check the split (config: dataset)")
        if not self.patches:
            return scenes
        patches.sum_ranks()
        patches.scenes = scenes
        return patches

    def _predicted(self, predict: Callable[[Var], Var]) -> Iterator[list[tuple[Sample, np.ndarray]]]:
        inference = self._inference(predict)
        for _, sample in self.loader:
            if self.scale == 1.0:
                pred = inference.labels(self._normalised(sample))
            else:
                pred = self._probabilities(inference, sample).argmax(0).astype(np.uint8)
            yield [(sample, pred)]

    def _inference(self, predict: Callable[[Var], Var]) -> Inference:
        def logits(batch: np.ndarray) -> np.ndarray:
            with jt.no_grad():
                found: np.ndarray = predict(jt.array(batch)).numpy()
            return found

        return Inference(
            logits,
            num_classes=self.num_classes,
            window=self.window,
            overlap=self.overlap,
            scales=self.scales,
            flips=self.flips,
            stride=self.stride,
            min_size=self.min_size,
            batch_size=self._at_once(self.window) if self.window else 1,
        )

    def _probabilities(self, inference: Inference, sample: Sample) -> np.ndarray:
        found = inference.probabilities(self._normalised(sample))
        return found if self.scale == 1.0 else resize_planes(found, sample.mask.shape)

    def _finish(self, scene: _Scene | None, found: Evaluation) -> None:
        if scene is not None:
            self._count(found, *scene.finish())


class _Scene:
    """A scene that is put together from its patches."""

    def __init__(self, place: Place, num_classes: int, ignore_index: int) -> None:
        self.name = place.scene
        self._image = np.zeros((*place.size, 3), np.uint8)
        self._mask = np.full(place.size, ignore_index, np.uint8)
        self._pred = np.zeros(place.size, np.uint8)
        self._blend = Blend(num_classes, place.size[1])

    def add(self, place: Place, sample: Sample, probabilities: np.ndarray) -> None:
        """Add a patch; what padding holds is left out."""
        window = place.window
        self._take(window.y0)
        self._blend.add(window, probabilities)
        inside = np.s_[: window.y1 - window.y0, : window.x1 - window.x0]
        self._image[window.slices], self._mask[window.slices] = sample.image[inside], sample.mask[inside]

    def finish(self) -> tuple[Sample, np.ndarray]:
        """The whole scene and its label map (H, W) uint8."""
        self._take(len(self._pred))
        return Sample(self._image, self._mask, self.name), self._pred

    def _take(self, bottom: int) -> None:
        """Decide on the rows that no further patch can reach."""
        if bottom > (top := self._blend.top):
            self._pred[top:bottom] = self._blend.take(bottom).argmax(0)
