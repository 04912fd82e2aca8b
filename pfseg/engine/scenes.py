"""Scores of whole scenes, stitched from the predictions of their patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pfseg.data.base import Sample
from pfseg.data.loader import EvalLoader
from pfseg.data.preparation.places import Place
from pfseg.engine.evaluator import BlendingEvaluator, Predict, Progress
from pfseg.engine.scoring import Evaluation
from pfseg.inference.blending import Blender
from pfseg.inference.sliding import SlidingWindows, most_probable


class SceneEvaluator(BlendingEvaluator):
    """Stitches the scenes that patches were cut from.

    In a scene every pixel counts once: its probabilities are the mean over the patches that hold it, weighted by
    `blend_weights`. Pixels of patches that were left out are ignored.

    Args:
        loader: all of a scene's patches one after the other, row by row.
        places: where each sample of the data set lies.
        patches: also score the patches.
        options: see `BlendingEvaluator`.
    """

    def __init__(self, loader: EvalLoader, *, places: Sequence[Place], patches: bool, **options: Any) -> None:
        super().__init__(loader, **options)
        self._places, self._count_patches = places, patches

    def run(self, predict: Predict, progress: Progress) -> Evaluation:
        """Predict all scenes; returns what `Evaluator.run` does for patches, with `scenes`, or for the scenes alone."""
        patches, scenes = self._new_evaluation(full=self._count_patches), self._new_evaluation()
        sliding, samples = self._sliding(predict), self._samples(progress)
        for name, indices in groupby(self.loader.indices, key=lambda index: self._places[index].scene):
            places = [self._places[index] for index in indices]
            scene, read = _blank(name, places[0].size, patches.ignore_index), patches.images
            pred = np.zeros(places[0].size, np.uint8)
            blender = Blender(self.num_classes, places[0].size, [place.window for place in places])
            probabilities = self._probabilities(sliding, zip(places, samples, strict=False), scene, patches)
            for row in blender.rows:
                for block, mean in blender.add(row, probabilities):
                    pred[block.slices] = mean.argmax(0)
            if patches.images > read:
                scenes.add(scene, pred)
        scenes.sum_ranks()
        if not self._count_patches:
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
        self,
        sliding: SlidingWindows,
        samples: Iterable[tuple[Place, Sample | None]],
        scene: Sample,
        patches: Evaluation,
    ) -> Iterator[np.ndarray | None]:
        """Probabilities of each patch of a scene, which gets its image and labels."""
        for place, sample in samples:
            if sample is None:
                yield None
                continue
            found = self._at_full_size(sliding.probabilities(self.normalised(sample.image)), sample)
            window = place.window
            inside = np.s_[: window.y1 - window.y0, : window.x1 - window.x0]  # without padding
            scene.image[window.slices], scene.mask[window.slices] = sample.image[inside], sample.mask[inside]
            patches.add(sample, most_probable(found))
            yield found


def _blank(name: str, size: tuple[int, int], ignore_index: int) -> Sample:
    """A scene of which nothing is known."""
    return Sample(np.zeros((*size, 3), np.uint8), np.full(size, ignore_index, np.uint8), name)
