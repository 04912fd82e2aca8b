"""`index.json`: what a folder of patches holds, scene by scene; and the complete check of such a folder against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, Scene, class_ids, parse_classes
from pfseg.data.masks import MaskReader
from pfseg.data.preparation.cutting import Cutter, SceneRecord
from pfseg.data.preparation.files import count_labels, write_file
from pfseg.data.preparation.layout import INDEX, Layout
from pfseg.data.sources import decode
from pfseg.data.tiling import Window
from pfseg.errors import ConfigError, DataError, PfsegError


@dataclass(frozen=True)
class IndexedPatch:
    """A patch as `index.json` describes it."""

    split: str
    scene: str
    scene_size: tuple[int, int]
    window: Window
    shape: tuple[int, int]  # of the patch, padding included
    files: list[str]  # its image and, if it has one, its mask, below the folder of patches
    counts: np.ndarray  # pixels of each label in its mask, (256,) int64


class PatchIndex(NamedTuple):
    """What `index.json` says: where patches lie, what their masks hold, and the patches scene by scene."""

    layout: Layout
    reader: MaskReader
    patches: list[IndexedPatch]


def make_index(
    settings: Mapping[str, Any],
    cutter: Cutter,
    layout: Layout,
    scenes: Sequence[Scene],
    done: Mapping[str, SceneRecord],
) -> dict[str, Any]:
    """Describe the patches of those of `scenes` that are `done`.

    The `settings` come first (name of the data set, size, stride); then `classes` with the `id` that masks hold,
    `ignore_value`, `layout`, and for each of the `splits` the number of `scenes` and their `patches`: a `PatchRow`
    with the `scene` and its `size`.
    """
    table = zip(cutter.classes, class_ids(cutter.classes), strict=True)
    index: dict[str, Any] = {
        **settings,
        "classes": [{"name": info.name, "color": list(info.color), "id": value} for info, value in table],
        "ignore_value": cutter.ignore_value,
        "layout": asdict(layout),
        "splits": {split: {"scenes": 0, "patches": []} for split in layout.folders},
    }
    for scene in scenes:
        if (record := done.get(scene.key)) is None:
            continue
        part = index["splits"][scene.split]
        part["scenes"] += 1
        for row in record["patches"]:
            part["patches"].append({"name": row["name"], "scene": scene.name, "size": record["size"], **row})
    return index


def write_index(out: Path, index: Mapping[str, Any]) -> None:
    """Write `index.json`, a patch a line, and the lists of the splits that the data set reads by one."""
    layout = Layout(**index["layout"])
    for split, name in layout.lists.items():
        images = [layout.files(split, row["name"], False)[0] for row in index["splits"][split]["patches"]]
        write_file(out / name, "".join(f"{image}\n" for image in images).encode())
    # A quotation mark within a text would be escaped: this is the beginning of a row.
    text = json.dumps(index, ensure_ascii=False).replace('{"name"', '\n{"name"')
    write_file(out / INDEX, f"{text}\n".encode())


def read_index(out: Path) -> PatchIndex:
    """Read `index.json`; raises DataError if there is none, or it is damaged."""
    path = out / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        layout = Layout(**index["layout"])
        classes = parse_classes(index["classes"])
        ignore = {index["ignore_value"], IGNORE} - {None, *class_ids(classes)}
        rows = ((split, row) for split, part in index["splits"].items() for row in part["patches"])
        patches = [_parse_row(index["size"], classes, layout, split, row) for split, row in rows]
        return PatchIndex(layout, MaskReader(classes, sorted(ignore)), patches)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): {out} is no finished preparation; give the command without "
            "verify=only to prepare it or continue"
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, ConfigError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is damaged ({fault}): prepare anew with overwrite=true") from error


def find_faults(out: Path, *, workers: int) -> Iterator[str | None]:
    """Check every patch that `index.json` names, and look for files that it does not name.

    Yields:
        For each patch None, or what is wrong with it; then what is wrong with other files.

    Raises:
        DataError: no index, or a damaged one.
    """
    index = read_index(out)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda patch: _patch_fault(out, index.reader, patch), index.patches)
    indexed = {file for patch in index.patches for file in patch.files} | set(index.layout.lists.values())
    for file in sorted({file for _, file in index.layout.all_files(out)} - indexed):
        yield f"{file} is not in the index: no preparation wrote it, or one was interrupted"
    for name in index.layout.lists.values():
        if not (out / name).is_file():
            yield f"{name} is missing"


def _parse_row(
    size: Sequence[int] | None, classes: Sequence[ClassInfo], layout: Layout, split: str, row: Mapping[str, Any]
) -> IndexedPatch:
    window = Window(*map(int, row["window"]))
    (height, width), (rows, columns) = size or window.shape, row["size"]
    counts = np.zeros(256, dtype=np.int64)
    counts[: len(classes)] = [row.get("pixels", {}).get(info.name, 0) for info in classes]
    counts[IGNORE] = row.get("ignored", 0)
    files, shape = layout.files(split, row["name"], "pixels" in row), (int(height), int(width))
    return IndexedPatch(split, str(row["scene"]), (int(rows), int(columns)), window, shape, files, counts)


def _patch_fault(out: Path, reader: MaskReader, patch: IndexedPatch) -> str | None:
    image, *masks = patch.files
    try:
        height, width = decode(out / image)[0].shape[:2]
        if (height, width) != patch.shape:
            return f"{image} has {width}x{height} px, expected {patch.shape[1]}x{patch.shape[0]}"
        for mask in masks:
            counts = count_labels(reader.read_counted(out / mask, mask)[0])
            for label in np.flatnonzero(counts != patch.counts):
                name = reader.classes[label].name if label != IGNORE else "ignore"
                return f"{mask} has {counts[label]} pixels of {name}, expected {patch.counts[label]}"
    except PfsegError as error:
        return str(error)
    return None
