"""The folder that a preparation writes: where patches lie, and a journal of what has been written.

    <out>/train/images/P0000_0_896_0_896.png    one folder for each split, as the data set reads it
    <out>/train/masks/P0000_0_896_0_896_instance_color_RGB.png
    <out>/index.json, report.md                 at the end
    <out>/journal.jsonl                         what belongs to the preparation, so that it can go on or be removed

The journal starts with the settings. Each scene adds a line before its first patch, with all of its files, and one
after its last, with its rows of the index. A process killed at any moment leaves at most one torn line at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from pfseg.data.archives.folders import some
from pfseg.data.preparation.cutting import Target, mask_name
from pfseg.data.preparation.files import PART, cannot_write
from pfseg.errors import ConfigError

INDEX, REPORT, JOURNAL = "index.json", "report.md", "journal.jsonl"


@dataclass(frozen=True)
class Layout:
    """Where the patches of each split lie below the folder, so that the data set finds them.

    Attributes:
        images: name of the folders with images.
        masks: name of the folders with masks.
        mask_suffix: what the stems of masks have after those of their images.
        folders: for each split the folder with both.
        lists: files that list the images of a split, of the splits that the data set reads by a list.
    """

    images: str
    masks: str
    mask_suffix: str
    folders: dict[str, str]
    lists: dict[str, str]

    def target(self, out: Path, split: str) -> Target:
        """The two folders of a split below `out`."""
        folder = out / self.folders[split]
        return Target(folder / self.images, folder / self.masks)

    def files(self, split: str, name: str, has_mask: bool) -> list[str]:
        """Paths below `out` of one patch."""
        folder = self.folders[split]
        masks = [f"{folder}/{self.masks}/{mask_name(name, self.mask_suffix)}"] if has_mask else []
        return [f"{folder}/{self.images}/{name}", *masks]


def make_layout(
    names: Iterable[str], splits: Mapping[str, Any] | None, images: str, masks: str, mask_suffix: str
) -> Layout:
    """Lay out the splits `names` as `splits` of the data set says, if that is one folder or list for each.

    Otherwise (a share of all images, several folders, folders inside each other) each split gets the folder of its
    own name, which the data set reads with `splits` null.
    """
    folders: dict[str, str] = {}
    lists: dict[str, str] = {}
    names = list(names)
    for split in names:
        source = split if splits is None else splits.get(split)
        if not isinstance(source, str) or PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts:
            source = None
        elif source.endswith(".txt"):
            lists[split], source = source, split
        folders[split] = source or ""
    paths = [PurePosixPath(folder) for folder in folders.values()]
    if not all(folders.values()) or any(one.is_relative_to(other) for one, other in permutations(paths, 2)):
        folders, lists = {split: split for split in names}, {}
    return Layout(images.strip("/"), masks.strip("/"), mask_suffix, folders, lists)


class PatchFolder:
    """The folder of one preparation, locked against a second one; a context manager.

    Args:
        out: the folder; made where missing.
        layout: where patches lie in it.
        settings: whatever changes the patches; compared with those of an earlier start.
        overwrite: remove what an earlier preparation wrote and start anew.

    Attributes:
        done: for each finished scene (`<split>/<name>`) what `finish` was given.

    Raises:
        ConfigError: the folder holds something else, patches of other settings, or files among the patches that no
            preparation wrote; or another preparation is writing into it.
        WriteError: nothing can be written there.
    """

    def __init__(self, out: Path, layout: Layout, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Lock the folder and read the journal."""
        self.out, self.layout = out, layout
        self.done: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, list[str]] = {}
        settings = json.loads(json.dumps(settings))
        _check_entries(out, overwrite)
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(out / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise cannot_write(out / JOURNAL, error) from error
        try:
            self._lock()
            earlier = self._read()
            if overwrite:
                self._remove_all(prepared=earlier is not None)
                earlier = None
            _compare_settings(out, earlier, settings)
            self._clean()
            for split in layout.folders:
                for folder in layout.target(out, split):
                    folder.mkdir(parents=True, exist_ok=True)
            if earlier is None:
                self._append({"settings": settings})
        except BaseException as error:
            if not os.fstat(self._descriptor).st_size and not isinstance(error, _BusyError):
                (out / JOURNAL).unlink()
            os.close(self._descriptor)
            if isinstance(error, OSError):
                raise cannot_write(out, error) from error
            raise

    def __enter__(self) -> PatchFolder:
        """Return the folder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the folder."""
        os.close(self._descriptor)

    def begin(self, key: str, files: list[str]) -> None:
        """Note which files the scene `key` will have; those of an earlier start that it no longer has are removed."""
        self._append({"begin": key, "files": files})
        self.done.pop(key, None)
        self._remove(set(self._begun.get(key, ())) - set(files))
        self._begun[key] = files

    def finish(self, key: str, record: dict[str, Any]) -> None:
        """Note that all files of the scene `key` are there."""
        self._append({"done": key, "record": record}, sync=True)
        self.done[key] = record

    def drop(self, key: str) -> None:
        """Remove what was written of the scene `key`."""
        self.done.pop(key, None)
        if files := self._begun.pop(key, None):
            self._remove(files)
            self._append({"drop": key})

    def keep_only(self, keys: Iterable[str]) -> None:
        """Compare with the scenes that there are now.

        Raises:
            ConfigError: a finished scene is no longer among them.
        """
        known = set(keys)
        if gone := [key for key in self.done if key not in known]:
            raise ConfigError(
                f"out={self.out} holds patches of scenes that src no longer gives: {some(gone)}; bring them back, or "
                "start anew with overwrite=true"
            )
        for key in set(self._begun) - known:
            self.drop(key)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _BusyError(f"another preparation is writing into out={self.out}: wait for it, or stop it") from None

    def _read(self) -> dict[str, Any] | None:
        """Read the journal and cut off a torn line; the settings, None for a new one."""
        data = (self.out / JOURNAL).read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self._descriptor, whole)
        settings, self._begun, self.done = replay(data[:whole])
        return settings

    def _append(self, line: Mapping[str, Any], *, sync: bool = False) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            raise cannot_write(self.out / JOURNAL, error) from error

    def _remove_all(self, *, prepared: bool) -> None:
        owned = {file for files in self._begun.values() for file in files} | indexed_files(self.out)
        self._remove(owned | ({*self.layout.lists.values(), INDEX, REPORT} if prepared else set()))
        self._begun, self.done = {}, {}
        os.ftruncate(self._descriptor, 0)

    def _remove(self, files: Iterable[str]) -> None:
        for file in files:
            (self.out / file).unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove temporary files; refuse others that are not this preparation's."""
        owned = {file for files in self._begun.values() for file in files}
        foreign = []
        for file in split_files(self.out, self.layout.folders.values()):
            path = PurePosixPath(file)
            if path.name.startswith(".") and path.name.endswith(PART):
                if str(path.with_name(path.name[1 : -len(PART)])) in owned:
                    self._remove([file])
                    continue
            if file not in owned:
                foreign.append(file)
        if foreign:
            raise ConfigError(
                f"out={self.out} has files among the patches that no preparation wrote, which training would read: "
                f"{some(foreign)}; move them away, or give another out"
            )


class _BusyError(ConfigError):
    """Another process holds the lock."""


def replay(journal: bytes) -> tuple[dict[str, Any] | None, dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Read whole lines of a journal: the settings, the files of each scene begun, the record of each one done."""
    settings: dict[str, Any] | None = None
    begun: dict[str, list[str]] = {}
    done: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(journal.splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            raise ConfigError(
                f"{JOURNAL} is damaged in line {number}: start anew with another out, or remove the folder"
            ) from None
        if "settings" in line:
            settings = line["settings"]
        elif "begin" in line:
            begun[line["begin"]] = line["files"]
            done.pop(line["begin"], None)
        elif "done" in line:
            done[line["done"]] = line["record"]
        else:
            begun.pop(line["drop"], None)
            done.pop(line["drop"], None)
    return settings, begun, done


def split_files(out: Path, folders: Iterable[str]) -> Iterator[str]:
    """Paths below `out` of all files in the folders of the splits, in a fixed order."""
    for top in folders:
        for folder, folders_below, names in os.walk(out / top):
            folders_below.sort()
            links = [name for name in folders_below if os.path.islink(os.path.join(folder, name))]
            yield from (Path(folder, name).relative_to(out).as_posix() for name in sorted([*names, *links]))


def indexed_files(out: Path) -> set[str]:
    """Paths below `out` of the patches and lists that an earlier `index.json` names; none if there is no such file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        layout = Layout(**index["layout"])
        patches = ((split, row) for split, part in index["splits"].items() for row in part["patches"])
        files = {file for split, row in patches for file in layout.files(split, row["name"], "pixels" in row)}
        return files | set(layout.lists.values())
    return set()


def _check_entries(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file: give a folder")
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if entries and JOURNAL not in entries and not overwrite:
        raise ConfigError(
            f"out={out} holds something else: {some(entries)}; give a new folder, or overwrite=true to write there "
            "all the same"
        )


def _compare_settings(out: Path, earlier: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    if earlier is None or earlier == settings:
        return
    keys = [key for key in settings if earlier.get(key) != settings[key]]
    changes = "; ".join(f"{key} was {earlier.get(key)}, is {settings[key]}" for key in keys)
    raise ConfigError(
        f"out={out} holds patches prepared with other settings ({changes}): give another out, or overwrite=true to "
        "replace them"
    )
