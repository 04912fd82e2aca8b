"""One image that ranks share: strips of it are kept as files until all are there, and the maps written from them.

A strip is what one row of windows adds. A rank goes on from strip to strip as long as nobody else has the next one; at
each other place to begin it also computes what the windows above leave to the first strip.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from pfseg.data.reader import Image
from pfseg.errors import DataError
from pfseg.prediction.files import StreamFile
from pfseg.prediction.folder import Task
from pfseg.prediction.rows import Rows
from pfseg.prediction.shares import claim

STRIPS = ".pfseg-strips"  # folder in that of the maps


class Strips:
    """The strips of an image, in a folder that all ranks see; those that an earlier start left count too."""

    def __init__(self, parent: Path, task: Task, count: int) -> None:
        self._folder = _folder(parent, task)
        self._files = [self._folder / f"{number}-of-{count}.npz" for number in range(count)]

    @property
    def complete(self) -> bool:
        """Whether all strips are there."""
        return all(file.exists() for file in self._files)

    def start(self) -> int | None:
        """The strip to go on with, None if there is none: where nobody comes along soon."""
        states = [_state(file) for file in self._files]
        runs = [(state, [*run]) for state, run in groupby(range(len(states)), states.__getitem__)]
        longest = max((run for state, run in runs if state == "free"), key=len, default=None)
        if longest is None:
            return None
        approached = longest[0] > 0 and states[longest[0] - 1] == "taken"
        return longest[len(longest) // 2 if approached else 0]

    def claim(self, first: int) -> Iterator[int]:
        """Strip after strip from `first` on, until one is done or another rank's; each is held until the next one."""
        for number in range(first, len(self._files)):
            with claim(self._files[number]) as mine:
                if not mine:
                    return
                yield number

    def save(self, number: int, rows: Rows) -> None:
        """Keep a finished strip; raises WriteError."""
        fields = {"labels": rows.labels, **rows.measures}
        if rows.probabilities is not None:
            fields["probabilities"] = rows.probabilities
        file = StreamFile(self._files[number])
        try:
            with file.writing():
                np.savez_compressed(file.file, **fields)
            file.close()
            file.publish()
        finally:
            file.discard()

    def rows(self, image: Image | None) -> Iterator[Rows]:
        """All strips in order, with the pixels of the image if it is given; raises DataError if a file is damaged."""
        top = 0
        for file in self._files:
            try:
                with file.open("rb") as opened, np.load(opened) as stored:
                    fields = dict(stored)
            except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise DataError(
                    f"{file}, which an earlier start has left, is damaged ({error}): give the same command again"
                ) from error
            labels, probabilities = fields.pop("labels"), fields.pop("probabilities", None)
            bottom = top + len(labels)
            yield Rows(image.read(top, bottom)[0] if image else None, labels, probabilities, fields)
            top = bottom

    def remove(self) -> None:
        """Remove all strips."""
        shutil.rmtree(self._folder, ignore_errors=True)


def share_done(parent: Path, task: Task) -> float:
    """The share of an image whose strips are there, from 0 to 1."""
    files = [*_folder(parent, task).glob("*.npz")]
    return len(files) / int(files[0].stem.rpartition("-")[2]) if files else 0.0


def _folder(parent: Path, task: Task) -> Path:
    """A folder of its own for each image, as it is now, and for what is wanted of it."""
    facts = json.dumps([str(task.image), task.size, task.changed, *sorted(task.targets)])
    return parent / hashlib.sha256(facts.encode()).hexdigest()[:24]


def _state(file: Path) -> Literal["done", "taken", "free"]:
    if file.exists():
        return "done"
    with claim(file) as mine:
        return "free" if mine else "taken"
