"""The output folder of a preparation and its journal, by which an interrupted preparation continues.

The journal is only ever appended to. It starts with the settings; each finished scene adds one line, with its rows of
the index, after its last patch. A process killed at any moment leaves at most one torn line at the end, and patches
of scenes that have no line yet: those are known by their names, removed, and written again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfseg.data.archives.folders import some
from pfseg.data.preparation.cutting import SceneRecord
from pfseg.data.preparation.files import cannot_write
from pfseg.data.preparation.index import read_index
from pfseg.data.preparation.layout import INDEX, JOURNAL, REPORT, Layout, scene_of
from pfseg.errors import ConfigError, DataError


class PatchFolder(AbstractContextManager["PatchFolder"]):
    """The output folder of one preparation, locked against a second one; a context manager.

    The `settings` (whatever changes the patches) are compared with those of an earlier start; `scenes` are the keys of
    all scenes; `overwrite` removes what an earlier preparation wrote.

    Raises:
        ConfigError: the folder holds something else, patches of other settings or of scenes that are not in `scenes`,
            or files among the patches that no preparation wrote; or another preparation is writing into it.
        WriteError: the folder cannot be written.
    """

    def __init__(
        self, out: Path, layout: Layout, settings: Mapping[str, Any], scenes: Collection[str], *, overwrite: bool
    ) -> None:
        self.out, self.layout = out, layout
        self._written = layout  # of the finished scenes: that of the journal
        self.done: dict[str, SceneRecord] = {}  # the finished scenes, by their keys
        _check_entries(out, overwrite)
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._journal = open(out / JOURNAL, "a+b", buffering=0)
            try:
                self._start(json.loads(json.dumps(settings)), scenes, overwrite)
            except BaseException:
                self._journal.close()
                raise
        except OSError as error:
            raise cannot_write(out, error) from error

    def __exit__(self, *_: object) -> None:
        """Unlock the folder."""
        self._journal.close()

    def finish(self, key: str, record: SceneRecord) -> None:
        """Note that all patches of the scene `key` are written."""
        self._append({"done": key, "record": record})
        self.done[key] = record

    def drop(self, key: str) -> None:
        """Remove the patches of the scene `key`, if it is finished."""
        if (record := self.done.pop(key, None)) is not None:
            self._append({"drop": key})
            self.remove(self._files(key, record))

    def remove(self, files: Iterable[str]) -> None:
        """Remove files, given by their paths below the folder."""
        for file in files:
            try:
                (self.out / file).unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(self.out / file, error) from error

    def _start(self, settings: dict[str, Any], scenes: Collection[str], overwrite: bool) -> None:
        try:  # the journal itself, so that no lock file stays in the folder
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another preparation is writing into out={self.out}: wait for it, or stop it") from None
        try:
            earlier, leftovers = self._read()
            if overwrite:
                self._remove_all(earlier is not None)
            else:
                _compare(self.out, earlier, settings, set(self.done) - set(scenes))
            self._clean(scenes if earlier is not None else (), leftovers)
            if earlier is None or overwrite:
                self._append({"settings": settings, "layout": asdict(self.layout)})
        except BaseException:
            if not os.fstat(self._journal.fileno()).st_size:
                (self.out / JOURNAL).unlink()
            raise

    def _read(self) -> tuple[dict[str, Any] | None, set[str]]:
        """Settings of the journal (None: it is new), and files that pfseg 0.1 named before it wrote them."""
        data = (self.out / JOURNAL).read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        self._journal.truncate(len(whole))  # without a torn line
        settings: dict[str, Any] | None = None
        begun: set[str] = set()
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = json.loads(text)
                if "settings" in line:
                    settings = line["settings"]
                    self._written = Layout(**line["layout"]) if "layout" in line else self.layout
                begun.update(line.get("files", ()))
                self.done.pop(line.get("begin", line.get("drop")), None)
                if "done" in line:
                    self.done[line["done"]] = line["record"]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ConfigError(
                    f"{JOURNAL} is damaged in line {number}: start anew with another out, or remove the folder"
                ) from None
        return settings, begun

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            while data:
                data = data[self._journal.write(data) :]
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise cannot_write(self.out / JOURNAL, error) from error

    def _files(self, key: str, record: SceneRecord) -> list[str]:
        split = key.partition("/")[0]
        return [file for row in record["patches"] for file in self._written.files(split, row["name"], "pixels" in row)]

    def _remove_all(self, prepared: bool) -> None:
        """Remove what the index of an earlier preparation names and, if it was `prepared` here, its other files."""
        with suppress(DataError):
            index = read_index(self.out)
            self.remove(file for patch in index.patches for file in patch.files)
            self.remove(index.layout.lists.values())
        for key in list(self.done) if prepared else ():
            self.drop(key)
        self.remove([*self._written.lists.values(), INDEX, REPORT] if prepared else ())
        self._journal.truncate(0)
        self._written = self.layout

    def _clean(self, scenes: Collection[str], leftovers: Collection[str]) -> None:
        """Remove patches of unfinished scenes; raises ConfigError if there are files of other origin."""
        owned = {file for key, record in self.done.items() for file in self._files(key, record)}
        foreign = []
        for split, file in self.layout.all_files(self.out):
            name = file.rpartition("/")[2]
            if file in leftovers or f"{split}/{scene_of(name, self.layout.mask_suffix)}" in scenes:
                self.remove({file} - owned)
            elif file not in owned:
                foreign.append(file)
        if foreign:
            raise ConfigError(
                f"out={self.out} has files among the patches that no preparation wrote, which training would read: "
                f"{some(foreign)}; move them away, or give another out"
            )


def _check_entries(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file: give a folder")
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if entries and JOURNAL not in entries and not overwrite:
        raise ConfigError(
            f"out={out} holds something else: {some(entries)}; give a new folder, or overwrite=true to write there "
            "all the same"
        )


def _compare(out: Path, earlier: Mapping[str, Any] | None, settings: Mapping[str, Any], gone: Collection[str]) -> None:
    if earlier is not None and earlier != settings:
        keys = [key for key in settings if earlier.get(key) != settings[key]]
        changes = "; ".join(f"{key} was {earlier.get(key)}, is {settings[key]}" for key in keys)
        raise ConfigError(
            f"out={out} holds patches prepared with other settings ({changes}): give another out, or overwrite=true to "
            "replace them"
        )
    if gone:
        raise ConfigError(
            f"out={out} holds patches of scenes that src no longer gives: {some(sorted(gone))}; bring them back, or "
            "start anew with overwrite=true"
        )
