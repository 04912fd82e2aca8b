"""The records file `metrics.jsonl`: rank 0 appends one JSON object a line, the driver follows it.

Every row has `event`, `step`, `epoch` and `time` (unix seconds). Rows are strict JSON: NaN and infinity, which
JSON lacks, become null. A process killed at any moment leaves at most one torn line at the end, which the next
writer removes and no reader returns.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import AfterValidator, FiniteFloat, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict

from pfseg.data.base import ClassRow
from pfseg.files import cannot_write, parse_json, plain, write_atomic

_PROGRESS_SECONDS = 0.5


class Row(TypedDict):
    """What every row holds; those of `train` and `val` also hold figures, see `figures`."""

    event: str
    step: int  # updates done
    epoch: int  # counts from 0
    time: FiniteFloat  # unix seconds


class MapFiles(TypedDict):
    """A validation sample: its name, and its files below the run folder."""

    name: str
    image: str
    mask: str
    pred: str
    edge: NotRequired[str]


class StartRow(Row, total=False):
    """A job begins, or goes on."""

    steps: NonNegativeInt  # of the whole training; 0 of an evaluation
    steps_per_epoch: int
    batch_size: int  # of a rank
    global_batch: int
    base_lr: FiniteFloat
    ranks: int
    device: str
    classes: list[str]
    images_train: int
    images_val: int
    parameters: FiniteFloat  # of the network
    macs: FiniteFloat  # multiply-adds of an image of the crop's size


class MasksRow(Row):
    """What the training masks hold: by class the shares of labelled pixels and of images."""

    classes: list[ClassRow]
    masks: int
    pixels: list[float]
    images: list[float]
    ignored: float  # share of pixels without a class


class ValRow(Row, total=False):
    """A scoring."""

    best: bool  # whether it has the highest mIoU so far
    panels: str | None  # picture of the samples, below the run folder
    samples: list[MapFiles]
    exclude: list[str]  # classes that don't count in means


def _square(matrix: list[list[int]]) -> list[list[int]]:
    if any(len(row) != len(matrix) for row in matrix):
        raise ValueError("not square")
    return matrix


class ConfusionRow(Row):
    """The pixels of the scoring before, (K, K): [truth][prediction]."""

    confusion: Annotated[list[list[NonNegativeInt]], AfterValidator(_square)]


class ProgressRow(Row):
    """How far a validation or another long work is."""

    text: str
    done: int
    total: int


class MessageRow(Row):
    """A text for the user."""

    level: NotRequired[Literal["info", "warning", "error"]]
    text: str


class EndRow(Row):
    """The job ends: `done`, `early_stop`, `out_of_time` or `stopped`."""

    status: str


_KINDS: dict[str, TypeAdapter[Any]] = {  # rows by event, where there is more than in any row
    "start": TypeAdapter(StartRow),
    "masks": TypeAdapter(MasksRow),
    "val": TypeAdapter(ValRow),
    "confusion": TypeAdapter(ConfusionRow),
    "progress": TypeAdapter(ProgressRow),
    "message": TypeAdapter(MessageRow),
    "end": TypeAdapter(EndRow),
}
_ANY = TypeAdapter(Row)


class Sink:
    """Receiver of a run's telemetry in the command's own process; each method may be left as it is.

    Rows go to the method `on_<event>` where there is one: `on_start` takes a `StartRow`, `on_train` a `Row`, `on_val` a
    `ValRow`, and so on.
    """

    def record(self, row: Row) -> None:
        """Receive a row of the records file."""
        if handler := getattr(self, f"on_{row['event']}", None):
            handler(row)

    def compiling(self, what: str, done: int, total: int, left: float | None) -> None:
        """Receive Jittor's count of what is compiled (of `Jittor` or `operators`), and the seconds that are left.

        At the very start none is done, `total` is 0 and `left` None.
        """

    def waiting(self, seconds: float) -> None:
        """Note that the ranks have given no sign of life in the `seconds` since the start."""

    def message(self, text: str, level: str = "info") -> None:
        """Receive a text for the user; `level` is info, warning or error."""

    def failed(self, reason: str) -> None:
        """Note why the job has failed, before `finish`; one that was told to stop has not."""

    def finish(self, exit_code: int = 0) -> None:
        """Note that the job has ended with this exit code; no further call follows."""


class RecordWriter:
    """Appends rows to a records file, each with one write, so that a reader meets whole lines.

    A torn last line of an earlier run is removed. What can't be written raises `WriteError`, and leaves the rows that
    are already there whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = ("", 0.0)  # text and time of the last progress row
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, event: str, *, step: int, epoch: int, **fields: Any) -> None:
        """Append one row; NumPy and Jittor scalars become numbers."""
        row = {"event": event, "step": int(step), "epoch": int(epoch), "time": round(time.time(), 3), **fields}
        line = (json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                end = file.tell()
                if os.write(file.fileno(), line) < len(line):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def progress(self, text: str, done: int, total: int, *, step: int, epoch: int) -> None:
        """Append a row for work of `total` parts: the first, the last, and between them at most two a second."""
        now = time.monotonic()
        if 0 < done < total and text == self._shown[0] and now - self._shown[1] < _PROGRESS_SECONDS:
            return
        self._shown = text, now
        self.write("progress", step=step, epoch=epoch, text=text, done=done, total=total)

    def drop_after(self, step: int) -> None:
        """Remove the rows of steps later than `step`, which a run resumed at `step` will write again."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
        if len(kept) < len(lines):
            write_atomic(self.path, b"".join(kept))


class Follower:
    """Reads the rows that are added to a records file from now on, without ever waiting.

    The file may not exist yet, and may be replaced by a shortened one (`RecordWriter.drop_after`); then reading goes
    on with the rows written since this follower was created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._created, self._since = round(time.time(), 3), 0.0
        there = path.exists()
        self._inode = path.stat().st_ino if there else None
        self._offset = path.read_bytes().rfind(b"\n") + 1 if there else 0

    def rows(self) -> Iterator[Row]:
        """Yield each whole row that has been added since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if self._inode not in (None, inode):
                self._offset, self._since = 0, self._created
            self._inode = inode
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if (row := _parse(line)) is not None and row["time"] >= self._since:
                yield row


def read_records(path: Path) -> list[Row]:
    """Return all whole rows of a records file, oldest first; none where there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if line.endswith(b"\n") and (row := _parse(line)) is not None]


def figures(row: Row, prefix: str) -> dict[str, float | None]:
    """The figures of a row below a prefix, by the rest of their names; None is one without a value.

    Below `train/` there are `loss`, its terms, `lr` and so on; below `val/` are `mIoU`, `IoU/<class>` and so on.
    """
    return {key.removeprefix(prefix): number(value) for key, value in row.items() if key.startswith(prefix)}


def numbers(row: Row, *prefixes: str) -> dict[str, float]:
    """The figures of a row below some prefixes, by their whole names, without those that have no value."""
    pairs = ((key, number(value)) for key, value in row.items() if key.startswith(prefixes))
    return {key: value for key, value in pairs if value is not None}


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def class_names(scores: Iterable[str]) -> list[str]:
    """The classes of the scores of a validation."""
    return [key.removeprefix("IoU/") for key in scores if key.startswith("IoU/")]


def boundary_scores(scores: Iterable[str]) -> list[str]:
    """The boundary scores among the scores of a validation, such as `boundary_IoU`."""
    return [key for key in scores if key.startswith("boundary_") and "/" not in key]


def _parse(line: bytes) -> Row | None:
    """Read a line; None for one that is damaged. What `Row` and its kinds don't name is kept."""
    try:
        row = parse_json(line)
        _KINDS.get(row["event"], _ANY).validate_python(row, strict=True)
    except (ValueError, TypeError, KeyError):  # of pydantic too
        return None
    return cast(Row, row)
