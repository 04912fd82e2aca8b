"""`index.json`: what a folder of patches holds, scene by scene; and the complete check of such a folder against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from pfseg.data.base import Scene, class_ids
from pfseg.data.preparation.cutting import Cutter, SceneRecord
from pfseg.data.preparation.files import Stamp, stamp_fault, write_file
from pfseg.data.preparation.layout import INDEX, Layout
from pfseg.data.sources import decode
from pfseg.data.tiling import Window
from pfseg.errors import DataError
from pfseg.files import parse_json


@dataclass(frozen=True)
class IndexedPatch:
    """A patch as `index.json` describes it."""

    split: str
    scene: str
    scene_size: tuple[int, int]
    window: Window
    files: list[str]  # its image and, if it has one, its mask, below the folder of patches
    stamps: list[Stamp]  # of these files


class PatchIndex(NamedTuple):
    """What `index.json` says: where patches lie, the patches scene by scene, and the files that they were cut from."""

    layout: Layout
    patches: list[IndexedPatch]
    sources: dict[str, Stamp]  # below the folder of the archive


def make_index(
    settings: Mapping[str, Any],
    cutter: Cutter,
    layout: Layout,
    scenes: Sequence[Scene],
    done: Mapping[str, SceneRecord],
) -> dict[str, Any]:
    """Describe the patches of those of `scenes` that are `done`.

    The `settings` come first (name of the data set, size, stride); then `classes` with the `id` that masks hold,
    `ignore_value`, `layout`, the stamp of each of the `sources`, and for each of the `splits` the number of `scenes`
    and their `patches`: a `PatchRow` with the `scene` and its `size`.
    """
    table = zip(cutter.classes, class_ids(cutter.classes), strict=True)
    index: dict[str, Any] = {
        **settings,
        "classes": [{"name": info.name, "color": list(info.color), "id": value} for info, value in table],
        "ignore_value": cutter.ignore_value,
        "layout": asdict(layout),
        "sources": {},
        "splits": {split: {"scenes": 0, "patches": []} for split in layout.folders},
    }
    for scene in scenes:
        if (record := done.get(scene.key)) is None:
            continue
        part = index["splits"][scene.split]
        part["scenes"] += 1
        for (name, size, _), checksum in zip(record["source"], record["checksums"], strict=True):
            index["sources"][name] = size, checksum
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
        index = parse_json(path.read_bytes())
        layout = Layout(**index["layout"])
        rows = ((split, row) for split, part in index["splits"].items() for row in part["patches"])
        patches = [_parse_row(layout, split, row) for split, row in rows]
        sources = {name: (int(size), str(checksum)) for name, (size, checksum) in index.get("sources", {}).items()}
        return PatchIndex(layout, patches, sources)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): {out} is no finished preparation; give the command without "
            "verify=only to prepare it or continue"
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        fault = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is damaged ({fault}): prepare anew with overwrite=true") from error


def find_faults(out: Path, src: Path | None, *, workers: int) -> Iterator[str | None]:
    """Check every patch that `index.json` names by its checksum, and look for files that it does not name.

    Patches of the first versions, which noted no checksums, are decoded instead. With `src` the files of the archive
    that the patches were cut from are checked too.

    Yields:
        For each file None, or what is wrong with it.

    Raises:
        DataError: no index, or a damaged one.
    """
    index = read_index(out)
    named: dict[str, Stamp | None] = {
        file: stamp for patch in index.patches for file, stamp in zip_longest(patch.files, patch.stamps)
    }
    files = [(out, *item) for item in named.items()] + [(src, *item) for item in index.sources.items() if src]

    def fault(folder: Path, file: str, stamp: Stamp | None) -> str | None:
        if stamp is None:
            return _decoding_fault(folder / file)
        found = stamp_fault(folder / file, stamp)
        return found and f"{folder / file if folder == src else file} {found}"

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda item: fault(*item), files)
    for file in sorted({file for _, file in index.layout.all_files(out)} - {*named, *index.layout.lists.values()}):
        yield f"{file} is not in the index: no preparation wrote it, or one was interrupted"
    for name in index.layout.lists.values():
        if not (out / name).is_file():
            yield f"{name} is missing"


def _decoding_fault(path: Path) -> str | None:
    try:
        decode(path)
    except DataError as error:
        return str(error)
    return None


def _parse_row(layout: Layout, split: str, row: Mapping[str, Any]) -> IndexedPatch:
    files, (rows, columns) = layout.files(split, row["name"], "pixels" in row), row["size"]
    stamps = [(int(size), str(checksum)) for size, checksum in row.get("files", ())]
    window = Window(*map(int, row["window"]))
    return IndexedPatch(split, str(row["scene"]), (int(rows), int(columns)), window, files, stamps)
