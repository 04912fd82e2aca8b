"""Objects of pfseg.data with settings for tests, each of which a keyword changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.fakes import CLASSES

from pfseg.data.base import Scene, SegmentationDataset
from pfseg.data.folder import FolderDataset
from pfseg.data.loader import EvalLoader, TrainLoader
from pfseg.data.synthetic import SyntheticDataset
from pfseg.data.transforms import Augment
from pfseg.data.whole_scenes import SceneDataset

READING = {"classes": CLASSES, "ignore": (), "bands": None, "stretch": None, "on_error": "raise"}


def folder_dataset(root: Path, kind: type[FolderDataset] = FolderDataset, **changes: Any) -> FolderDataset:
    layout = {"images": "images", "masks": "masks", "mask_suffix": "", "splits": None}
    return kind(**{"split": "train", "root": root, **layout, **READING, **changes})


def scene_dataset(scenes: Sequence[Scene], **changes: Any) -> SceneDataset:
    return SceneDataset(
        **{"scenes": scenes, "split": "train", "size": (64, 64), "stride": (48, 48)} | READING | changes
    )


def synthetic(split: str, **changes: Any) -> SyntheticDataset:
    return SyntheticDataset(**{"split": split, "size": 256, "train_images": 96, "val_images": 16, "seed": 0} | changes)


def augmentation(**changes: Any) -> Augment:
    """Nothing but the change of size, unless a keyword says so."""
    off = dict.fromkeys(("hflip", "vflip", "rotate", "brightness", "contrast", "saturation", "hue", "cutmix"), 0.0)
    none = dict.fromkeys(("scale_range", "blur", "max_class_share"))
    return Augment(**{"rot90": False, **off, **none, **changes})


def train_loader(dataset: SegmentationDataset, **changes: Any) -> TrainLoader:
    """One rank, no loading processes, images scaled to 0..1."""
    sample = {"augment": augmentation(), "crop_size": (40, 40), "mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0}
    labels = {"edge_rule": "class", "edge_thickness": 8, "ignore_index": 255, "class_uniform": 0.0}
    process = {"batch_size": 2, "seed": 0, "rank": 0, "world_size": 1, "workers": 0, "multiple": 1}
    return TrainLoader(**{"dataset": dataset, **sample, **labels, **process, **changes})


def eval_loader(dataset: SegmentationDataset, **changes: Any) -> EvalLoader:
    return EvalLoader(**{"dataset": dataset, "rank": 0, "world_size": 1, "workers": 0, **changes})
