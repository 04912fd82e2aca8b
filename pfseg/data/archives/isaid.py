"""iSAID: scenes of the archive as the development kit unpacks it.

Waqas Zamir et al., "iSAID: A Large-scale Dataset for Instance Segmentation in Aerial Images", CVPR Workshops 2019;
the images are those of DOTA-v1.0. Classes and the published protocol: conf/dataset/isaid.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfseg.data.archives.folders import SceneList, nothing_found, some
from pfseg.data.base import Scene

SCENES = {"train": 1411, "val": 458, "test": 937}  # of the complete archive; `test` has no masks
_COLORS = "_instance_color_RGB"
_MASK_FOLDERS = ("images", "Semantic_masks/images", "Semantic_masks")


def find_scenes(src: Path, leave_out: Sequence[str]) -> SceneList:
    """Find the scenes of the archive by split and name, but those that `leave_out` names.

    Images are `<src>/{train,val,test}/images/P0000.png`; masks `P0000_instance_color_RGB.png` lie beside them or in
    `{train,val}/Semantic_masks`, there also in a folder `images`. Masks without image are faults.

    Raises:
        DataError: no scene at all.
    """
    scenes = SceneList()
    for split, complete in SCENES.items():
        files = _png_files(src / split / "images")
        images = {path.stem: path for path in files if not path.stem.endswith((_COLORS, "_instance_id_RGB"))}
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
        left_out = len(leave_out) if split == "train" else 0
        if len(wanted) != complete - left_out and (split != "test" or images):
            without = f" without {some(leave_out)}" if left_out else ""
            scenes.notes.append(
                f"{split}: {len(wanted):,} scenes; the complete archive has {complete - left_out:,}{without}"
            )
    if not scenes:
        layout = "{train,val,test}/images/P0000.png with masks P0000_instance_color_RGB.png"
        raise nothing_found(src, "iSAID", layout)
    return scenes


def _png_files(folder: Path) -> list[Path]:
    files = folder.glob("*.png") if folder.is_dir() else ()
    return sorted(path for path in files if not path.name.startswith("."))
