"""What every data set is: a class table and samples by index.

A data set is one module with one class derived from `SegmentationDataset`; it is built as
`Cls(split="train" | "val", **keywords)`, the keywords being the keys of its YAML file.
"""

from __future__ import annotations

import filecmp
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from pfseg.data.cache import cache_folder
from pfseg.errors import ConfigError, DataError

IGNORE = 255  # the label of pixels without a class, in every mask of every data set
MAX_CLASSES = 254  # 255 is "ignore", 254 marks unknown colours while a mask is decoded
_MAX_ID = 65535
IgnoreEntry = int | str | Sequence[int]  # a value or a colour in masks that means "no class"


class Note(str):
    """Something to tell the user, once for all notes of its `kind`."""

    kind: str

    def __new__(cls, text: str, kind: str) -> Note:
        """The text is that of the first occasion."""
        note = super().__new__(cls, text)
        note.kind = kind
        return note

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """What makes an equal one in another process."""
        return str(self), self.kind


class ClassRow(TypedDict):
    """One row of a class table as YAML holds it; see `ClassInfo` and `parse_color`."""

    name: str
    color: str | Sequence[int]
    id: NotRequired[int | None]


@dataclass(frozen=True)
class ClassInfo:
    """One row of a class table."""

    name: str  # in tables and legends
    color: tuple[int, int, int]  # RGB, each 0..255
    id: int | None = None  # the value in single-channel masks; None: the row's position in the table

    @property
    def hex_color(self) -> str:
        """The colour as `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


@dataclass
class Sample:
    """One image with its labels."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    mask: np.ndarray  # (H, W) uint8, in [0, K) or 255 for ignore
    name: str  # unique within the data set, for instance the image's path below the root


@dataclass(frozen=True)
class Scene:
    """A whole image of a published archive, to be cut into patches or read by windows."""

    name: str  # unique within its split; starts the names of its patches
    split: str  # `train`, `val` or `test`
    image: Path
    mask: Path | None  # None where the archive has none for it

    @property
    def key(self) -> str:
        """`<split>/<name>`, unique in an archive."""
        return f"{self.split}/{self.name}"


class SegmentationDataset(ABC):
    """Samples of one split, read one by one."""

    classes: tuple[ClassInfo, ...]  # in the order of the labels
    on_error: str = "raise"  # or `skip` to leave out samples that cannot be read; the loaders act on it
    warnings: list[str]  # faults worked around; whoever reads the list empties it

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples of this split."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read sample `index`, always the same for it; raises DataError, which names the file, if it can't be read."""

    def read_mask(self, index: int) -> np.ndarray:
        """Mask of sample `index`, (H, W) uint8; to be overridden where it is cheaper than `read`."""
        return self.read(index).mask

    def leave_out(self, error: DataError) -> None:
        """Raise the error; with `on_error=skip` it becomes a warning instead."""
        if self.on_error != "skip":
            hint = "" if "on_error" in str(error) else "; dataset.on_error=skip leaves out what can't be read"
            raise DataError(f"{error}{hint}") from error
        self.warnings.append(f"left out: {error}")

    def image_files(self) -> list[Path]:
        """Files that the images come from; none where code makes them."""
        return []

    def mask_key(self) -> object:
        """All that the masks depend on, as JSON can hold it; None: unknown, so nothing about them can be stored."""
        return None

    def cache_folders(self) -> list[Path]:
        """Folders to store things about this data set in, the best first."""
        return [cache_folder()]


def parse_color(value: object, *, where: str) -> tuple[int, int, int]:
    """Read a colour written as hex ("3C1098" or "#3C1098") or as a list of red, green, blue; raises ConfigError."""
    if isinstance(value, str):
        digits = value.removeprefix("#")
        if len(digits) == 6 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
    elif isinstance(value, Sequence) and len(value) == 3:
        if all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in value):
            return int(value[0]), int(value[1]), int(value[2])
    # YAML reads an unquoted 110000 as an integer and 6E1098 as a float, both of which end here.
    raise ConfigError(
        f'colour {value!r} is neither hex such as "3C1098" (in quotes) nor a list of three numbers 0..255 ({where})'
    )


def parse_classes(rows: Iterable[ClassRow | ClassInfo]) -> tuple[ClassInfo, ...]:
    """Read a class table: for each class a `ClassRow`, with an `id` if masks hold another value than its position.

    Raises:
        ConfigError: an empty table, an unknown or missing key, or two classes of one name, colour or id.
    """
    classes = tuple(
        row if isinstance(row, ClassInfo) else _parse_row(row, f"config: dataset.classes[{position}]")
        for position, row in enumerate(rows)
    )
    if not 0 < len(classes) <= MAX_CLASSES:
        raise ConfigError(
            f"the class table has {len(classes)} classes; expected 1 to {MAX_CLASSES} (config: dataset.classes)"
        )
    names, colors = [info.name for info in classes], [info.color for info in classes]
    columns: dict[str, list[Any]] = {"name": names, "colour": colors, "id": class_ids(classes)}
    for key, values in columns.items():
        for position, value in enumerate(values):
            if (other := values.index(value)) < position:
                raise ConfigError(
                    f"classes {other} ({names[other]}) and {position} ({names[position]}) have the same {key}; "
                    f"each needs its own (config: dataset.classes[{position}])"
                )
    return classes


def class_ids(classes: Sequence[ClassInfo]) -> list[int]:
    """Value of each class in single-channel masks, in the order of the table."""
    return [position if info.id is None else info.id for position, info in enumerate(classes)]


def _parse_row(row: ClassRow, where: str) -> ClassInfo:
    keys = set(row) if isinstance(row, Mapping) else set()
    if not {"name", "color"} <= keys <= {"name", "color", "id"}:
        raise ConfigError(f"got {row!r}; expected the keys name, color and, if needed, id ({where})")
    identity = row.get("id")
    if identity is not None and (not isinstance(identity, int) or not 0 <= identity <= _MAX_ID):
        raise ConfigError(f"id {identity!r} is not a whole number from 0 to {_MAX_ID} ({where}.id)")
    return ClassInfo(str(row["name"]), parse_color(row["color"], where=f"{where}.color"), identity)


def find_overlap(train: SegmentationDataset, val: SegmentationDataset) -> str | None:
    """A warning if validation images are among the training images: files of the same stem and content."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in train.image_files():
        by_stem[path.stem].append(path)
    images = val.image_files()
    shared = [path for path in images if any(_same(path, other) for other in by_stem.get(path.stem, ()))]
    if not shared:
        return None
    return (
        f"{len(shared)} of the {len(images)} validation images are also in the training split, such as {shared[0]}: "
        "the validation score does not measure how the network does on images it has not seen (config: dataset.splits)"
    )


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second) or filecmp.cmp(first, second, shallow=False)  # compares sizes first
    except OSError:
        return False  # an unreadable file is reported where it is read
