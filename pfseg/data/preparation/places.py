"""Where the samples of a data set lie in their scenes, so that whole scenes can be put together from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfseg.data.base import SegmentationDataset
from pfseg.data.preparation.index import read_index
from pfseg.data.preparation.layout import INDEX
from pfseg.data.tiling import Window
from pfseg.data.whole_scenes import SceneDataset
from pfseg.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a sample lies."""

    scene: str  # name, unique within the split
    size: tuple[int, int]  # (H, W) of the scene
    window: Window  # part of the scene; the sample may be larger, padded at the bottom and right


def scene_places(dataset: SegmentationDataset, split: str, root: Path | None) -> list[Place]:
    """Place of each sample: of windows of whole scenes as they are, of patches by the `index.json` of their `root`.

    Raises:
        DataError: no index, a sample that it does not hold, or a patch of it that the data set lacks.
    """
    if isinstance(dataset, SceneDataset):
        return [Place(scene.name, dataset.scenes[scene], window) for scene, window in dataset.samples]
    if root is None or not (root / INDEX).is_file():
        raise DataError(
            f"score=scenes needs patches of pfseg prepare, but {root or 'this data set'} has no {INDEX}: "
            "prepare them, or use score=patches"
        )
    known = {
        (root / patch.files[0]).absolute(): Place(patch.scene, patch.scene_size, patch.window)
        for patch in read_index(root).patches
        if patch.split == split
    }
    files = [path.absolute() for path in dataset.image_files()]
    if foreign := [path for path in files if path not in known]:
        raise DataError(
            f"{foreign[0]} ({len(foreign)} of {len(files)} images) is not in the split {split!r} of {root / INDEX}: "
            "only prepared patches can be put together to scenes; use score=patches"
        )
    if dataset.on_error == "raise" and (missing := sorted(known.keys() - set(files))):
        raise DataError(
            f"{missing[0]} ({len(missing)} of {len(known)} patches) is missing, so its scene cannot be put together: "
            f"check the patches by pfseg prepare ... out={root} verify=only"
        )
    return [known[path] for path in files]


def scene_order(places: Sequence[Place], rank: int, world_size: int) -> list[int]:
    """Indices of the samples of one rank: whole scenes, about as many samples a rank, each scene row by row."""
    scenes: dict[str, list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        scenes[place.scene].append(index)
    shares: list[list[list[int]]] = [[] for _ in range(world_size)]
    for samples in sorted(scenes.values(), key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(samples)
    mine = sorted(shares[rank])
    return [index for samples in mine for index in sorted(samples, key=lambda i: places[i].window[0::2])]
