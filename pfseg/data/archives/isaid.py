"""iSAID: scenes of the archive as the development kit unpacks it.

Waqas Zamir et al., "iSAID: A Large-scale Dataset for Instance Segmentation in Aerial Images", CVPR Workshops 2019;
the images are those of DOTA-v1.0. Classes and the published protocol: conf/dataset/isaid.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pfseg.data.archives.folders import SceneList, nothing_found, some
from pfseg.data.base import Scene

SCENES = {"train": 1411, "val": 458, "test": 937}  # of the complete archive; `test` has no masks
_COLORS, _INSTANCES = "_instance_color_RGB", "_instance_id_RGB"
_MASK_FOLDERS = ("images", "Semantic_masks/images", "Semantic_masks")


def find_scenes(src: Path, leave_out: Sequence[str]) -> SceneList:
    """Find the scenes of the archive.

    Args:
        src: folder with `{train,val,test}/images/P0000.png`; masks `P0000_instance_color_RGB.png` lie beside the
            images or in `{train,val}/Semantic_masks`, there also in a folder `images`.
        leave_out: names of scenes to leave out.

    Returns:
        Scenes by split and name. Faults: images without mask (but in `test`), masks without image.

    Raises:
        DataError: no scene at all.
    """
    scenes = SceneList()
    for split, complete in SCENES.items():
        images = {path.stem: path for path in _png_files(src / split / "images") if not _is_label(path)}
        masks = {
            path.stem.removesuffix(_COLORS): path
            for folder in reversed(_MASK_FOLDERS)  # of two masks the one beside the image counts
            for path in _png_files(src / split / folder)
            if path.stem.endswith(_COLORS)
        }
        wanted = {name: path for name, path in images.items() if name not in leave_out}
        scenes += [Scene(name, split, wanted[name], masks.get(name)) for name in sorted(wanted)]
        scenes.faults += [
            f"mask {masks[name]} has no image: expected {src / split / 'images' / name}.png"
            for name in sorted(set(masks) - set(images))
        ]
        if split != "test" or images:
            scenes.notes += _compare(split, wanted, complete, leave_out)
    if not scenes:
        layout = "{train,val,test}/images/P0000.png with masks P0000_instance_color_RGB.png"
        raise nothing_found(src, "iSAID", layout)
    return scenes


def _compare(split: str, wanted: dict[str, Path], complete: int, leave_out: Sequence[str]) -> Iterator[str]:
    left_out = len(leave_out) if split == "train" else 0
    if len(wanted) != complete - left_out:
        without = f" without {some(leave_out)}" if left_out else ""
        yield f"{split}: {len(wanted):,} scenes; the complete archive has {complete - left_out:,}{without}"


def _png_files(folder: Path) -> list[Path]:
    files = folder.glob("*.png") if folder.is_dir() else ()
    return sorted(path for path in files if not path.name.startswith("."))


def _is_label(path: Path) -> bool:
    return path.stem.endswith((_COLORS, _INSTANCES))
