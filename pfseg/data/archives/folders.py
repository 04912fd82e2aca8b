"""Scenes of an archive as it lies on disk, and what is missing there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from pfseg.data.base import Scene
from pfseg.data.folder import EXTENSIONS, FolderDataset, Splits, is_image
from pfseg.errors import DataError

_SHOWN = 6  # names in a message


class SceneList(list[Scene]):
    """Scenes, with the remarks of a report on where they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []  # to be mended or known to be missing, such as an image without its mask
        self.notes: list[str] = []  # merely worth knowing, such as how many scenes of a complete archive there are


def some(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    every = list(names)
    rest = len(every) - _SHOWN
    return ", ".join(every[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def nothing_found(src: Path, what: str, looked_for: str) -> DataError:
    """The error for an archive without a single scene: what was looked for, and what lies there instead."""
    entries = sorted(f"{path.name}/" if path.is_dir() else path.name for path in src.iterdir()) if src.is_dir() else []
    return DataError(
        f"no scenes of {what} in {src}: looked for {looked_for}; found {some(entries) or 'nothing'}; "
        "set src=<the folder that holds them>"
    )


def find_in_folders(
    src: Path, splits: Splits | None, build: Callable[[str], FolderDataset], images: str, mask_suffix: str
) -> SceneList:
    """Every image of the splits of a `FolderDataset` as a scene.

    A scene is called like its image's path below the root (below the split's folder where that is one), without the
    folder of the images and the ending, `_` for `/`, spaces kept: `Tile 1/images/part 2.jpg` is `Tile 1_part 2`.
    No `splits` stand for the folders `train`, `val` and, if it is there, `test`; `build` makes the data set of a split,
    which leaves out what it cannot use.

    Raises:
        DataError: no split has an image with a mask.
    """
    if splits is None:
        splits = {split: split for split in ("train", "val", "test") if split != "test" or (src / split).is_dir()}
    names = ("train", "val") if isinstance(splits.get("val"), float) else tuple(splits)
    scenes, errors, folders = SceneList(), [], set()
    for split in names:
        try:
            dataset = build(split)
        except DataError as error:
            errors.append(error)
            continue
        source = splits.get(split)
        base = src / source if isinstance(source, str) and (src / source).is_dir() else src
        folders |= {(image.parent, mask.parent) for image, mask in dataset.files}
        scenes += [Scene(_scene_name(image, base, images), split, image, mask) for image, mask in dataset.files]
        scenes.faults += dataset.warnings
    if not scenes:
        looked_for = f"{{{', '.join(map(str, splits.values()))}}} with folders {images}"
        raise nothing_found(src, "the folders", f"{looked_for} ({errors[0]})" if errors else looked_for)
    scenes.faults += [str(error) for error in errors]
    scenes.faults += [fault for pair in sorted(folders) for fault in _orphans(*pair, mask_suffix)]
    return scenes


def _scene_name(image: Path, base: Path, images: str) -> str:
    path = PurePosixPath((image.relative_to(base) if image.is_relative_to(base) else Path(image.name)).as_posix())
    before, _, after = f"/{path.parent}/".rpartition(f"/{images.strip('/')}/")
    parts = [part for part in f"{before}/{after}".split("/") if part not in ("", ".")]
    return "_".join([*parts, path.stem])


def _orphans(images: Path, masks: Path, mask_suffix: str) -> list[str]:
    """A fault for each mask without image; where both lie in one folder, only files with the suffix are masks."""
    files = [path for path in sorted(masks.iterdir()) if is_image(path) and path.stem.endswith(mask_suffix)]
    stems = {path.stem for path in images.iterdir() if is_image(path)}
    return [
        f"mask {path} has no image: expected {images / path.stem.removesuffix(mask_suffix)}{{{','.join(EXTENSIONS)}}}"
        for path in files
        if path.stem.removesuffix(mask_suffix) not in stems
    ]
