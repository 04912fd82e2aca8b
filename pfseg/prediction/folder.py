"""Which images to predict and where their maps go; what an earlier start has finished."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfseg.data.preparation.files import cannot_write, write_file
from pfseg.errors import ConfigError
from pfseg.prediction.image import GEOGRAPHIC, PLAIN
from pfseg.prediction.maps import target_name

RECORD = ".pfseg.json"


@dataclass(frozen=True)
class Task:
    """An image and the files that it becomes.

    Attributes:
        image: the file.
        size: its bytes.
        geotiff: whether the maps are GeoTIFFs.
        targets: output -> file.
    """

    image: Path
    size: int
    geotiff: bool
    targets: Mapping[str, Path]

    @property
    def done(self) -> bool:
        """Whether an earlier start has finished it."""
        return all(path.is_file() for path in self.targets.values())


def find_images(given: str, output: Path) -> tuple[Path, list[Path]]:
    """Images that a file, folder or glob pattern stands for; maps that lie among them are none.

    Args:
        given: file, folder or pattern.
        output: folder of the maps.

    Returns:
        The folder that they lie below, and the images in order.

    Raises:
        ConfigError: there are none, or the maps would lie beside them.
    """
    path = Path(given).expanduser().absolute()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise ConfigError(
                f"output={output} is the folder of the images: the maps would mix with them; give another"
            )
        found = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in (*PLAIN, *GEOGRAPHIC)]
        found = [each for each in found if each.is_file() and not each.name.startswith(".")]
        found = [each for each in found if output not in each.parents]
        if not found:
            raise ConfigError(
                f"input={given} holds no images: expected files named *{', *'.join((*PLAIN, *GEOGRAPHIC))}"
            )
        return path, found
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
    found = [each for each in found if output not in each.parents]
    if not found:
        what = "matches no files" if glob.has_magic(given) else "does not exist"
        raise ConfigError(
            f"input={given} {what} (looked in {path}): give an image, a folder, or a pattern as 'a/*.tif'"
        )
    fixed = Path(os.path.commonpath([each.parent for each in found]))
    return fixed, found


def plan(root: Path, images: Sequence[Path], output: Path, outputs: Sequence[str], form: str) -> list[Task]:
    """Say where each image's maps go: below `output` as the images lie below `root`.

    Args:
        root: folder of the images.
        images: files below it.
        output: folder for the maps.
        outputs: keys of `pfseg.prediction.maps.SUFFIXES`.
        form: `png`, `tif`, or `auto` for GeoTIFFs of TIFFs and PNGs of other images.

    Raises:
        ConfigError: two images would give one file, or a map would replace an image.
    """
    tasks, owners = [], {path: path for path in images}
    for image in images:
        geotiff = image.suffix.lower() in GEOGRAPHIC if form == "auto" else form == "tif"
        place = (output / image.relative_to(root)).parent
        targets = {kind: place / target_name(image.stem, kind, geotiff=geotiff) for kind in outputs}
        for target in targets.values():
            if (other := owners.setdefault(target, image)) is not image or target == image:
                raise ConfigError(f"the map of {image} would be {target}, which is that of {other}: rename either")
        tasks.append(Task(image, image.stat().st_size, geotiff, targets))
    return tasks


def open_record(output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Note what the maps in `output` are made with; refuse a folder whose maps were made otherwise.

    Args:
        output: folder for the maps, made where missing.
        settings: all that changes the maps, as JSON can hold it.
        overwrite: take the folder whatever it holds.

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
