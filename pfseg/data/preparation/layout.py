"""Where the patches of a preparation lie, so that the data set finds them.

    <out>/train/images/P0000_0_896_0_896.png    one folder for each split; .tif for other than one or three bands
    <out>/train/masks/P0000_0_896_0_896_instance_color_RGB.png
    <out>/index.json, report.md                 written at the end
    <out>/journal.jsonl                         what has been written so far, see `pfseg.data.preparation.folder`

Lists of images (`<out>/train.txt`) are written for splits that the data set reads by a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePosixPath

from pfseg.data.folder import Splits
from pfseg.data.inputs import INDEX as INDEX
from pfseg.data.tiling import Window
from pfseg.files import PART

REPORT, JOURNAL = "report.md", "journal.jsonl"


@dataclass(frozen=True)
class Layout:
    """Where the patches of each split lie below the output folder."""

    images: str  # name of the folders with images
    masks: str
    mask_suffix: str  # what the stems of masks have after those of their images
    folders: dict[str, str]  # of each split, with both
    lists: dict[str, str]  # of the images, for the splits that the data set reads by a list

    def __post_init__(self) -> None:
        """Raise ValueError for what no index names, such as folders elsewhere."""
        for text in (self.images, self.masks, self.mask_suffix, *self.folders.values(), *self.lists.values()):
            if not isinstance(text, str) or text.startswith("/") or ".." in text.split("/"):
                raise ValueError(f"{text!r} is no name in its folder")

    def files(self, split: str, name: str, has_mask: bool) -> list[str]:
        """Paths below the output folder of one patch: its image and, with `has_mask`, its mask."""
        folder, stem = self.folders[split], PurePosixPath(name).stem
        masks = [f"{folder}/{self.masks}/{stem}{self.mask_suffix}.png"] if has_mask else []
        return [f"{folder}/{self.images}/{name}", *masks]

    def all_files(self, out: Path) -> Iterator[tuple[str, str]]:
        """Split and path below `out` of every file in the folders of the splits, in a fixed order."""
        for split, top in self.folders.items():
            for folder, folders_below, names in os.walk(out / top):
                folders_below.sort()
                links = [name for name in folders_below if os.path.islink(os.path.join(folder, name))]
                for name in sorted([*names, *links]):
                    yield split, Path(folder, name).relative_to(out).as_posix()


def make_layout(names: Iterable[str], splits: Splits | None, images: str, masks: str, mask_suffix: str) -> Layout:
    """Lay out the splits `names` as `splits` of the data set says, if that is one folder or list for each.

    Otherwise (a share of all images, several folders, folders inside each other) each split gets the folder of its
    own name, which the data set reads with `splits` null.
    """
    folders: dict[str, str] = {}
    lists: dict[str, str] = {}
    for split in names:
        source = split if splits is None else splits.get(split)
        if not isinstance(source, str) or PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
            source = ""
        elif source.endswith(".txt"):
            lists[split], source = source, split
        folders[split] = source
    paths = [PurePosixPath(folder) for folder in folders.values()]
    if not all(folders.values()) or any(path.is_relative_to(other) for path, other in permutations(paths, 2)):
        folders, lists = {split: split for split in folders}, {}
    return Layout(images.strip("/"), masks.strip("/"), mask_suffix, folders, lists)


def patch_name(scene: str, window: Window, suffix: str) -> str:
    """File name of a patch's image: the scene and its rows and columns there."""
    return f"{scene}_{'_'.join(map(str, window))}{suffix}"


def scene_of(name: str, mask_suffix: str) -> str:
    """The scene in the name of a patch's image or mask, finished or being written; empty for any other name."""
    if name.endswith(PART):
        name = name[1:].removesuffix(PART).rpartition(".")[0]  # without the process's number
    scene, *window = re.sub(r"\.(png|tif)$", "", name).removesuffix(mask_suffix).rsplit("_", 4)
    return scene if len(window) == 4 and all(side.isdecimal() for side in window) else ""
