"""Aerial-like scenes made by code, with exact labels: for trying things out and for tests, no files needed.

A scene is fields, water and roads, then what stands on them: car parks, buildings, cars, trees. Colours overlap
between classes on purpose (green roofs and green water, grey water and grey roads, brown fields and brown roofs),
so that texture, shape and context have to be learnt.
"""

from __future__ import annotations

import numpy as np

from pfseg.data.base import ClassInfo, Sample, SegmentationDataset
from pfseg.data.renderer import SceneRenderer
from pfseg.errors import ConfigError

_SPLITS = {"train": 1, "val": 2}


class SyntheticDataset(SegmentationDataset):
    """Scenes `size` px square that depend on (seed, split, index) only; the splits share none.

    Raises:
        ConfigError: a split other than `train` and `val`.
    """

    classes = (  # in the order of the labels that SceneRenderer paints
        ClassInfo("field", (180, 200, 90)),
        ClassInfo("road", (110, 193, 228)),
        ClassInfo("building", (60, 16, 152)),
        ClassInfo("tree", (20, 120, 60)),
        ClassInfo("water", (40, 90, 220)),
        ClassInfo("car", (226, 60, 41)),
    )

    def __init__(self, *, split: str, size: int, train_images: int, val_images: int, seed: int) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"unknown split {split!r}; known are {', '.join(_SPLITS)}")
        self.warnings = []
        self.split, self.size, self.seed = split, size, seed
        self._length = train_images if split == "train" else val_images

    def __len__(self) -> int:
        """Number of scenes of the split."""
        return self._length

    def mask_key(self) -> object:
        """The settings, from which each scene follows."""
        return self.split, self.size, self.seed, len(self)

    def read(self, index: int) -> Sample:
        """Make scene `index`."""
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], index])
        image, mask = SceneRenderer(self.size, rng).render()
        return Sample(image, mask, f"{self.split}_{index:04d}")
