"""Which images to predict, where their maps go, and which of them an earlier start has finished."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pfseg.data.preparation.files import cannot_write, write_file
from pfseg.data.source import Remote
from pfseg.data.sources import GEOGRAPHIC, PLAIN, by_gdal
from pfseg.errors import ConfigError
from pfseg.prediction.maps import target_name
from pfseg.prediction.stac import find_asset

RECORD = ".pfseg.json"
_MASKS = {"masks": "images", "gt": "image", "masks_png": "images_png"}  # beside the images of data sets in conf/dataset
_UNKNOWN = 100 << 20  # size of an image behind a URL in bytes, for the progress bar


@dataclass(frozen=True)
class Task:
    """An image and the files that it becomes."""

    image: PurePath
    size: int  # of the file in bytes; a guess for one behind a URL
    changed: int  # when it was, in nanoseconds; 0 for one behind a URL
    geotiff: bool  # whether the maps are GeoTIFFs
    targets: Mapping[str, Path]  # the file of each output

    @property
    def done(self) -> bool:
        """Whether an earlier start has finished it."""
        return all(path.is_file() for path in self.targets.values())


def find_images(pattern: str, output: Path, asset: str | None = None) -> tuple[PurePath, Sequence[PurePath]]:
    """Images that a file, folder, glob pattern, URL or STAC item stands for, without the maps in `output` below it.

    `asset` is the one to take of a STAC item; None for its only image.

    Returns:
        The folder that they lie below, and the images in order.

    Raises:
        ConfigError: there are none, or the maps would lie beside them.
    """
    if pattern.split("?")[0].endswith(".json"):
        image = find_asset(pattern, asset)
        return image.parent, [image]
    if "://" in pattern:
        return Remote(pattern).parent, [Remote(pattern)]
    path = Path(pattern).expanduser().absolute()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise ConfigError(f"output={output} is the folder of the images: give another, so that maps don't mix")
        suffixes = (*PLAIN, *GEOGRAPHIC)
        masks = set(mask_folders(path))
        files = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in suffixes and not _is_hidden(file, path) and masks.isdisjoint(file.parents)
        ]
        if images := _images(files, output):
            return path, images
        raise ConfigError(f"input={pattern} holds no images: expected files named *{', *'.join(suffixes)}")
    images = _images(map(Path, glob.glob(_below_folder(path), recursive=True)), output)
    if not images:
        problem = "matches no files" if glob.has_magic(pattern) else "does not exist"
        raise ConfigError(
            f"input={pattern} {problem} (looked in {path}): give an image, a folder, or a pattern as 'a/*.tif'"
        )
    return Path(os.path.commonpath([image.parent for image in images])), images


def mask_folders(root: Path) -> list[Path]:
    """Folders below `root` that hold the masks of a data set, by their names and that of the folder beside them."""
    named = (folder for folder in root.rglob("*") if folder.name in _MASKS and folder.is_dir())
    return sorted(folder for folder in named if folder.with_name(_MASKS[folder.name]).is_dir())


def _is_hidden(file: Path, root: Path) -> bool:
    """Whether a file or one of the folders that it lies in is hidden, such as `.ipynb_checkpoints`."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _below_folder(pattern: Path) -> str:
    """The pattern, but for the folders above it that exist: brackets in their names are no pattern."""
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    return os.path.join(glob.escape(str(folder)), *pattern.relative_to(folder).parts)


def _images(files: Iterable[Path], output: Path) -> list[Path]:
    return sorted(file for file in files if file.is_file() and output not in file.parents)


def plan(root: PurePath, images: Sequence[PurePath], output: Path, outputs: Sequence[str], form: str) -> list[Task]:
    """Say where each image's maps go: below `output` as the images lie below `root`.

    `form` is `png`, `tif`, or `auto` for GeoTIFFs of TIFFs and PNGs of other images.

    Raises:
        ConfigError: two images would give one file, or a map would replace an image.
    """
    tasks, owners = [], {PurePath(path): path for path in images}
    for image in images:
        geotiff = by_gdal(image) if form == "auto" else form == "tif"
        place = (output / image.relative_to(root)).parent
        targets = {kind: place / target_name(image.stem, kind, geotiff=geotiff) for kind in outputs}
        for target in targets.values():
            if (other := owners.setdefault(PurePath(target), image)) is not image or target == image:
                raise ConfigError(f"the map of {image} would be {target}, which is that of {other}: rename either")
        stat = image.stat() if isinstance(image, Path) else None
        size, changed = (stat.st_size, stat.st_mtime_ns) if stat else (_UNKNOWN, 0)
        tasks.append(Task(image, size, changed, geotiff, targets))
    return tasks


def open_record(output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Record what the maps in `output` are made with, and check that those already there were made with the same.

    With `overwrite` the folder is taken whatever it holds.

    Raises:
        ConfigError: maps of another network or other settings lie there.
        WriteError: the folder can't be written to.
    """
    path = output / RECORD
    settings = json.loads(json.dumps(settings))
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not overwrite else settings
    except ValueError:
        earlier = settings  # torn by a kill
    except OSError as error:
        raise cannot_write(output, error) from error
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise ConfigError(
                f"output={output} holds maps made with {key}={earlier.get(key)}, this is {key}={value}: give another "
                "folder, or overwrite=true to make them again"
            )
    write_file(path, json.dumps(settings, indent=1).encode())
