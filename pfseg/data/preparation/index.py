"""`index.json`: what a folder of patches holds, scene by scene; and the complete check of such a folder against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, Scene, class_ids
from pfseg.data.decode import read_image
from pfseg.data.preparation.cutting import MaskCodes
from pfseg.data.preparation.files import mask_counts, write_file
from pfseg.data.preparation.folder import INDEX, Layout, indexed_files, split_files
from pfseg.data.preparation.preparation import scene_key
from pfseg.errors import DataError, PfsegError


def make_index(
    settings: Mapping[str, Any],
    classes: Sequence[ClassInfo],
    codes: MaskCodes,
    layout: Layout,
    scenes: Sequence[Scene],
    done: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Describe the patches of all finished scenes.

    Args:
        settings: what was asked for, such as the name of the data set, size and stride; comes first.
        classes: the class table.
        codes: what masks hold.
        layout: where patches lie.
        scenes: all scenes, in the order of the index.
        done: the records of the finished ones, see `pfseg.data.preparation.preparation`.

    Returns:
        The settings; `classes` with the `id` that masks hold, `ignore_value`; `layout`; and for each of the `splits`
        the number of `scenes` and their `patches`: `name`, `scene`, `size` of the scene [H, W], `window`
        [y0, y1, x0, x1], the scene's sides that it touches (`border`) and, with a mask, `pixels` by class and
        `ignored`.
    """
    table = zip(classes, class_ids(classes), strict=True)
    index: dict[str, Any] = dict(settings)
    index["classes"] = [{"name": info.name, "color": list(info.color), "id": value} for info, value in table]
    index["ignore_value"] = codes.ignore
    index["layout"] = asdict(layout)
    index["splits"] = {split: {"scenes": 0, "patches": []} for split in layout.folders}
    for scene in scenes:
        if (record := done.get(scene_key(scene))) is None:
            continue
        part = index["splits"][scene.split]
        part["scenes"] += 1
        for row in record["patches"]:
            part["patches"].append({"name": row["name"], "scene": scene.name, "size": record["size"], **row})
    return index


def write_index(out: Path, index: Mapping[str, Any]) -> None:
    """Write `index.json`, a patch a line, and the lists of the splits that the data set reads by one.

    Raises:
        WriteError: the disk is full, or a file cannot be written for another reason.
    """
    layout = Layout(**index["layout"])
    for split, name in layout.lists.items():
        images = [layout.files(split, row["name"], False)[0] for row in index["splits"][split]["patches"]]
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(out / name, "".join(f"{image}\n" for image in images).encode())
    # A quotation mark within a text would be escaped: this is the beginning of a row.
    text = json.dumps(index, ensure_ascii=False).replace('{"name"', '\n{"name"')
    write_file(out / INDEX, f"{text}\n".encode())


def read_index(out: Path) -> dict[str, Any]:
    """Read `index.json`.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = out / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Layout(**index["layout"])
        return index
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): {out} is no finished preparation; give the command without "
            "verify=only to prepare it or go on"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): prepare anew with overwrite=true") from error


def find_faults(out: Path, *, workers: int) -> Iterator[str | None]:
    """Check every patch that `index.json` names, and look for files that it doesn't name.

    Args:
        out: the folder of patches.
        workers: threads.

    Yields:
        For each patch None, or what is wrong with it; then what is wrong with other files.

    Raises:
        DataError: no index, or a damaged one.
    """
    index = read_index(out)
    layout = Layout(**index["layout"])
    patches = [(split, row) for split, part in index["splits"].items() for row in part["patches"]]
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda patch: _patch_fault(out, index, layout, *patch), patches)
    for file in sorted(set(split_files(out, layout.folders.values())) - indexed_files(out)):
        yield f"{file} is not in the index: no preparation wrote it, or one was interrupted"
    for name in layout.lists.values():
        if not (out / name).is_file():
            yield f"{name} is missing"


def _patch_fault(out: Path, index: Mapping[str, Any], layout: Layout, split: str, row: Mapping[str, Any]) -> str | None:
    y0, y1, x0, x1 = row["window"]
    shape = tuple(index["size"] or (y1 - y0, x1 - x0))
    image, *masks = layout.files(split, row["name"], "pixels" in row)
    try:
        found = read_image(out / image).shape[:2]
    except PfsegError as error:
        return str(error)
    if found != shape:
        return f"{image} has {found[1]}x{found[0]} px, expected {shape[1]}x{shape[0]}"
    return next((fault for mask in masks if (fault := _mask_fault(out, mask, index, row))), None)


def _mask_fault(out: Path, mask: str, index: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    if not (out / mask).is_file():
        return f"{mask} is missing"
    counts = mask_counts(out / mask, [info["id"] for info in index["classes"]], index["ignore_value"])
    if not counts.any():
        return f"{mask} is unreadable, or holds values outside the class table"
    expected = np.zeros(256, dtype=np.int64)
    expected[IGNORE] = row["ignored"]
    for label, info in enumerate(index["classes"]):
        expected[label] = row["pixels"].get(info["name"], 0)
    if np.array_equal(counts, expected):
        return None
    names = {label: info["name"] for label, info in enumerate(index["classes"])} | {IGNORE: "ignore"}
    some = next(label for label in names if counts[label] != expected[label])
    return f"{mask} has {counts[some]} pixels of {names[some]}, expected {expected[some]}"
