"""Scores of whole scenes, stitched from the predictions of their patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pfseg.data.base import Sample
from pfseg.data.preparation.places import Place
from pfseg.engine.evaluator import BlendingEvaluator, Predict, Progress
from pfseg.engine.scoring import Evaluation
from pfseg.inference.blending import Blender
from pfseg.inference.sliding import SlidingWindows, most_probable


@dataclass(eq=False, kw_only=True)
class SceneEvaluator(BlendingEvaluator):
    """Stitches the scenes that patches were cut from.

    In a scene every pixel counts once: its probabilities are the mean over the patches that hold it, weighted by
    `blend_weights`. Pixels of patches that were left out are ignored.

    The loader gives all of a scene's patches one after the other, row by row.
    """

    places: Sequence[Place]  # of each sample of the data set
    patches: bool  # also score the patches

    def run(self, predict: Predict, progress: Progress) -> Evaluation:
        """Predict all scenes; returns what `Evaluator.run` does for patches, with `scenes`, or for the scenes alone."""
        patches, scenes = self._new_evaluation(full=self.patches), self._new_evaluation()
        sliding, samples = self._sliding(predict), self._samples(progress)
        for name, indices in groupby(self.loader.indices, key=lambda index: self.places[index].scene):
            places = [self.places[index] for index in indices]
            size, read = places[0].size, patches.images
            scene = Sample(np.zeros((*size, 3), np.uint8), np.full(size, self.ignore_index, np.uint8), name)
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
            planes = self._at_full_size(sliding.probabilities(self.normalised(sample.image)), sample)
            window = place.window
            inside = np.s_[: window.shape[0], : window.shape[1]]  # without padding
            scene.image[window.slices], scene.mask[window.slices] = sample.image[inside], sample.mask[inside]
            patches.add(sample, most_probable(planes))
            yield planes
