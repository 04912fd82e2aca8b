"""Reading runs back from their folders: settings, rows, state. Whatever a killed run leaves can be read.

A folder is a run if it holds `metrics.jsonl`, `resolved.yaml` or, of a sweep's job that never started, `error.txt`
beside `.hydra`. Evaluations lie below the run that they score, and take its settings.
"""

from __future__ import annotations

import glob
import math
import os
import socket
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import psutil

from pfseg.errors import ConfigError
from pfseg.files import load_json, load_yaml
from pfseg.tracking.records import ConfusionRow, Row, StartRow, ValRow, figures, number, read_records

FRESH_SECONDS = 900.0  # a run of another host that wrote so recently counts as running: its processes can't be seen
_ENDS = {"done": "finished", "early_stop": "finished", "out_of_time": "finished", "stopped": "stopped"}
_DETAILS = {"early_stop": "stopped early: no better mIoU", "out_of_time": "trainer.max_time was reached"}
_CHOICES = "hydra.runtime.choices."
_INSIDE = {"checkpoints", "samples", "wandb", "errors", ".hydra", ".git"}


Values = dict[str, float | None]  # by name; None where a value is missing


@dataclass
class ValidationPoint:
    """One scoring of a run."""

    step: int  # updates before it
    scores: Values  # `mIoU`, `IoU/<class>` and so on
    panels: Path | None = None  # picture of the samples, where it is still there
    confusion: list[list[int]] | None = None  # K rows of K pixel counts, [truth][prediction]

    @property
    def miou(self) -> float | None:
        """The mIoU in percent."""
        return self.scores.get("mIoU")


@dataclass
class Run:
    """What a run folder tells."""

    folder: Path  # absolute
    name: str  # short and unique among the runs read together
    settings: dict[str, object] = field(default_factory=dict)  # resolved, by dotted key, and each group's choice
    overridden: frozenset[str] = frozenset()  # keys that were given on the command line
    status: str = "lost"  # finished, running, stopped, failed or lost
    detail: str = ""  # why it failed or ended, in one line
    train: list[tuple[int, Values]] = field(default_factory=list)  # steps and their losses etc., oldest first
    validations: list[ValidationPoint] = field(default_factory=list)  # oldest first
    steps: int = 0  # updates done, of `total`
    total: int | None = None
    seconds: float | None = None  # in training and validation, over all resumptions
    unreadable: int = 0  # lines and files that could not be read
    parameters: float | None = None  # of the network, in millions
    macs: float | None = None  # multiply-adds of an image of the crop's size, in billions

    @property
    def best(self) -> ValidationPoint | None:
        """The validation of the highest mIoU, the first of equal ones."""
        scored = [v for v in self.validations if v.miou is not None]
        return max(scored, key=lambda v: v.miou or 0.0, default=None)

    @property
    def last(self) -> ValidationPoint | None:
        """The last validation."""
        return self.validations[-1] if self.validations else None

    @property
    def speed(self) -> float | None:
        """Images per second in training, the median of its rows."""
        speeds = [speed for _, values in self.train if (speed := values.get("images_per_s")) is not None]
        return statistics.median(speeds) if speeds else None

    @property
    def job(self) -> str:
        """`train`, or `evaluate <split>`."""
        kind = str(self.settings.get("job", "train"))
        return f"{kind} {self.settings.get('split', '')}".strip() if kind == "evaluate" else kind


def find_runs(places: Sequence[str]) -> list[Path]:
    """Find the run folders at and below some places: folders, or patterns with `*`, `?`, `[...]` and `**`.

    Returns:
        Absolute paths in the order of their names, numbers by value; each run once.

    Raises:
        ConfigError: nothing at a place, or no run below any.
    """
    folders: set[Path] = set()
    for place in places:
        path = Path(place).expanduser()
        matches = [path] if path.exists() else [Path(name) for name in glob.glob(str(path), recursive=True)]
        if not matches:
            raise ConfigError(
                f"{place} does not exist and matches nothing (looked from {Path.cwd()}); name run folders"
            )
        for match in matches:
            folders.update(_below(match if match.is_dir() else match.parent))
    if not folders:
        raise ConfigError(
            f"no run in {', '.join(places)}: expected folders with metrics.jsonl or resolved.yaml, such as "
            "outputs/<name>/<date>/<time>"
        )
    return sorted(folders, key=lambda path: [_natural(part) for part in path.parts])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs of `folders`, absolute paths; names are their paths below the deepest common folder."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    logs = {  # that a process of this machine writes: each run's driver holds its own open
        Path(file.path)
        for process in psutil.process_iter(["open_files"])
        for file in process.info["open_files"] or ()  # None: another user's process
        if file.path.endswith("/worker.log") and file.mode != "r"
    }
    runs = [_read(folder, str(folder.relative_to(common)), logs) for folder in folders]
    if len(runs) == 1 and "name" in runs[0].settings:
        runs[0].name = f"{runs[0].settings['name']} {runs[0].name}"
    return runs


def _below(top: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(top.absolute()):
        never_started = "error.txt" in files and ".hydra" in subfolders
        if "metrics.jsonl" in files or "resolved.yaml" in files or never_started:
            yield Path(folder)
        subfolders[:] = [name for name in subfolders if name not in _INSIDE]


def _natural(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part.isdecimal() else (1, 0, part)


def _read(folder: Path, name: str, logs: Collection[Path]) -> Run:
    run = Run(folder, name)
    _read_settings(run)
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().count(b"\n") if path.exists() else 0  # without a torn last one
    rows = read_records(path)
    run.unreadable += max(0, lines - len(rows))  # a running run may have added some in between
    for row in rows:
        _take(run, row)
    starts = [place for place, row in enumerate(rows) if row["event"] == "start"]
    if starts:  # time from each start to the last row before the next one
        spans = pairwise([*starts, len(rows)])
        run.seconds = float(sum(rows[end - 1]["time"] - rows[start]["time"] for start, end in spans))
    run.status, run.detail = _status(folder, rows, logs)
    return run


def _read_settings(run: Run) -> None:
    config = _yaml_of(run, "resolved.yaml") or _yaml_of(run, ".hydra/config.yaml") or {}
    hydra = _yaml_of(run, ".hydra/hydra.yaml") or {}
    overrides = _yaml_of(run, ".hydra/overrides.yaml") or []
    settings = flatten(config)
    if settings.get("job") == "evaluate":
        parent = Run(run.folder.parent.parent, "")
        _read_settings(parent)
        # What is null there was taken from the training; its own seed changes no score.
        changes = {key: value for key, value in settings.items() if value is not None and key != "seed"}
        settings = parent.settings | changes
        run.overridden = parent.overridden
    named = {key: group["name"] for key, group in config.items() if isinstance(group, dict) and "name" in group}
    choices = {key.removeprefix(_CHOICES): value for key, value in flatten(hydra).items() if key.startswith(_CHOICES)}
    chosen = {key.replace("/", "."): value for key, value in choices.items() if not key.startswith("hydra/")}
    run.settings = {**settings, **named, **chosen}
    run.overridden |= frozenset(str(text).lstrip("+~").partition("=")[0].replace("/", ".") for text in overrides)


def _yaml_of(run: Run, name: str) -> Any:
    try:
        content = load_yaml(run.folder / name)
    except ValueError:
        run.unreadable += 1
        return None
    return content if isinstance(content, list if name.endswith("overrides.yaml") else dict) else None


def _take(run: Run, row: Row) -> None:
    event, step = row["event"], row["step"]
    if event == "start":
        start = cast(StartRow, row)
        parameters, macs = start.get("parameters"), start.get("macs")
        run.total = start.get("steps") or None
        run.parameters, run.macs = parameters and parameters / 1e6, macs and macs / 1e9
    elif event == "train":
        run.train.append((step, figures(row, "train/")))
    elif event == "val":
        panels = cast(ValRow, row).get("panels")
        picture = run.folder / panels if panels else None
        panel = picture if picture and picture.is_file() else None
        run.validations.append(ValidationPoint(step, figures(row, "val/"), panel))
    elif event == "confusion" and run.validations and run.validations[-1].step == step:
        run.validations[-1].confusion = cast(ConfusionRow, row)["confusion"]
    if event in ("train", "val", "end"):
        run.steps = max(run.steps, step)


def _status(folder: Path, rows: Sequence[Row], logs: Collection[Path]) -> tuple[str, str]:
    """State of a run, as its folder and this machine's processes tell, and why it failed or ended, in one line."""
    if folder.resolve() / "worker.log" in logs:
        return "running", ""
    errors = [load_json(path) for path in sorted((folder / "errors").glob("rank*.json"))]
    errors = [error for error in errors if isinstance(error, dict) and "message" in error]
    if errors:
        first = min(errors, key=lambda error: number(error.get("time")) or math.inf)
        kind = "" if first.get("user") else f"{first.get('type', 'error')}: "
        return "failed", kind + _first_line(str(first["message"]))
    final: Mapping[str, object] = next((row for row in reversed(rows) if row["event"] in ("start", "end")), {})
    result = load_json(folder / "result.json")
    ending = str((result if isinstance(result, dict) else final).get("status"))
    if ending in _ENDS:
        return _ENDS[ending], _DETAILS.get(ending, "")
    if (text := folder / "error.txt").is_file():
        return "failed", _first_line(text.read_text(encoding="utf-8", errors="replace")).removeprefix("error: ")
    environment, records = load_json(folder / "environment.json"), folder / "metrics.jsonl"
    host = environment.get("hostname") if isinstance(environment, dict) else None
    if not host or host == socket.gethostname():
        return "lost", "no end record and no live process"
    if records.exists() and time.time() - records.stat().st_mtime < FRESH_SECONDS:
        return "running", f"on {host}"
    return "lost", f"no end record; it ran on {host}, whose processes can't be seen from here"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return lines[-1 if lines[0].startswith("Traceback") else 0]


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by dotted key; lists stay whole."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
