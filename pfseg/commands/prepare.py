"""`pfseg prepare`: cut the scenes of an archive into patches; see `pfseg.data.preparation.layout` for the files."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from rich.console import Console

from pfseg import __version__
from pfseg.build_data import display_positions, find_scenes, share_stretch
from pfseg.config.commands import PrepareJob
from pfseg.config.compose import compose, spell
from pfseg.config.data_settings import FolderData
from pfseg.config.validation import validate
from pfseg.data.archives.folders import SceneList
from pfseg.data.base import Scene, class_ids, parse_classes
from pfseg.data.census import indexed_census
from pfseg.data.inputs import make_record
from pfseg.data.preparation.cutting import Cutter
from pfseg.data.preparation.files import write_file
from pfseg.data.preparation.folder import PatchFolder
from pfseg.data.preparation.index import find_faults, make_index, write_index
from pfseg.data.preparation.layout import REPORT, Layout, make_layout
from pfseg.data.preparation.preparation import Outcome, Preparation
from pfseg.data.preparation.report import compare, make_report
from pfseg.errors import ConfigError, DataError
from pfseg.launch.driver import JobStopped
from pfseg.signals import STOPPING, collected_signals
from pfseg.tracking import terminal
from pfseg.tracking.terminal import ConsoleProgress

_SHOWN = 20  # faults on the terminal
_TEST = "test"  # the split that may come without masks


def run(settings: PrepareJob) -> None:
    """Prepare as configured, or check what an earlier preparation wrote."""
    console = terminal.console()
    workers = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    src, out, data = Path(settings.src), Path(settings.out), settings.dataset
    if settings.verify == "only":
        _check(out, None if src == out else src, workers, console)
        return
    source, target = src.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"one of out={out} and src={src} contains the other: give a folder beside src, so that files don't mix"
        )
    scenes = _find_scenes(data)
    with ConsoleProgress(console, "measuring images") as progress:
        share_stretch(data, progress.show, [scene.image for scene in scenes if scene.split == "train"])
    splits = dict.fromkeys(scene.split for scene in scenes)
    layout = make_layout(splits, data.splits, data.images, data.masks, data.mask_suffix)
    cutter = Cutter(
        classes=parse_classes(data.classes),
        ignore=data.ignore,
        size=data.prepare.size,
        stride=data.prepare.stride,
        bands=data.bands,
        stretch=data.stretch,
        compression=settings.compression,
        verify=settings.verify,
    )
    keys = {scene.key for scene in scenes}
    with (
        PatchFolder(out, layout, _settings(data), keys, overwrite=settings.overwrite) as folder,
        collected_signals() as signals,
    ):
        console.print(f"{len(scenes):,} scenes of {data.name} from {src} to {out}", highlight=False, soft_wrap=True)
        with ConsoleProgress(console, "cutting") as progress:
            outcome = Preparation(
                src, cutter, folder, workers=workers, progress=progress, stop=lambda: bool(signals)
            ).run(scenes)
        if outcome.stopped:
            raise JobStopped(
                f"stopped after {len(folder.done):,} of {len(scenes):,} scenes; the same command goes on from there",
                STOPPING[signals[0]],
            )
        _conclude(data, cutter, layout, folder, scenes, outcome, console)


def _find_scenes(data: FolderData) -> SceneList:
    """Find the scenes that can be cut; the others become faults."""
    every = find_scenes(data.model_copy(update={"on_error": "skip"}), data.splits)
    usable = SceneList()
    usable.faults, usable.notes = list(getattr(every, "faults", ())), list(getattr(every, "notes", ()))
    known: dict[str, Scene] = {}
    for scene in every:
        if scene.mask is None and scene.split != _TEST:
            usable.faults.append(f"{scene.image} has no mask (split {scene.split})")
        elif (other := known.setdefault(scene.key, scene)) is not scene:
            usable.faults.append(f"{scene.image} would give patches of the same names as {other.image}: rename either")
        else:
            usable.append(scene)
    if not usable:
        raise DataError(f"none of the {len(every)} images in {data.root} has a mask; the first: {usable.faults[0]}")
    return usable


def _settings(data: FolderData) -> dict[str, object]:
    """Whatever changes the patches."""
    classes = parse_classes(data.classes)
    table = [[info.name, list(info.color), value] for info, value in zip(classes, class_ids(classes), strict=True)]
    keys = ("ignore", "images", "masks", "mask_suffix", "bands", "stretch", "splits")
    plain = data.dump()
    cut = {key: plain["prepare"][key] for key in ("size", "stride", "scenes")}
    return {"dataset": data.name, **cut, "classes": table, **{key: plain[key] for key in keys}}


def _conclude(
    data: FolderData,
    cutter: Cutter,
    layout: Layout,
    folder: PatchFolder,
    scenes: SceneList,
    outcome: Outcome,
    console: Console,
) -> None:
    """Write index and report, show a summary, and fail if something failed."""
    plain, expected, out = data.prepare.dump(), data.prepare.expected, folder.out
    head = {"dataset": data.name, "pfseg": __version__, "size": plain["size"], "stride": plain["stride"]}
    head["input"] = make_record(cutter.image_reader, [scene.image for scene in scenes])
    index = make_index(head, cutter, layout, outcome.scenes, folder.done)
    report = make_report(index, outcome, folder.done, expected=expected, faults=scenes.faults, notes=scenes.notes)
    write_index(out, index)
    write_file(out / REPORT, report.encode())
    table = terminal.table("split", "scenes", "patches", numbers=("scenes", "patches"))
    for split, part in index["splits"].items():
        table.add_row(split, f"{part['scenes']:,}", f"{len(part['patches']):,}")
    console.print(table)
    oddities = sum(1 for record in folder.done.values() if record["unknown"])
    lines = [*compare(index, expected), *scenes.notes, *cutter.image_reader.pop_notes()]
    for split in index["splits"]:
        census = indexed_census(cutter.classes, out, split)
        lines += [f"warning: {split}: {text}" for text in (census.warnings() if census else ())]
    lines += [f"{oddities:,} masks have colours outside the class table, which are ignored"] if oddities else []
    lines += [f"{outcome.skipped:,} scenes had been finished before"] if outcome.skipped else []
    for line in [*lines, f"report: {out / REPORT}", f"train: {_training_command(data, layout, out)}"]:
        terminal.line(console, line)
    failures = [*(f"{key}: {reason}" for key, reason in outcome.failures.items()), *scenes.faults]
    if failures:
        raise DataError(
            f"{len(outcome.failures)} of {len(scenes)} scenes failed and the archive has {len(scenes.faults)} faults, "
            f"listed in {out / REPORT}; the first: {failures[0]}"
        )


def _training_command(data: FolderData, layout: Layout, out: Path) -> str:
    """How to train on the patches; what the preparation has done already is not to be done again."""
    choice, stored = _stored_settings(data)
    kept = {split: layout.lists.get(split, folder) for split, folder in layout.folders.items()}
    count, wanted = len(data.bands or "RGB"), data.dump() | {"bands": None, "stretch": None}
    if count != 3:
        wanted["bands"] = [*range(count)]  # of the patches
    wanted["display_bands"] = display_positions(data)
    for key in ("mean", "std"):
        wanted[key] = wanted[key] if len(wanted[key] or ()) == count else None
    if data.splits is not None and any(data.splits.get(split) != source for split, source in kept.items()):
        wanted["splits"] = None
    given = [f"dataset={choice}", f"dataset.root={spell(str(out))}"]
    given += [
        f"dataset.{key}={spell(value)}"
        for key, value in wanted.items()
        if key not in ("root", "prepare", "about", "source") and stored[key] != value
    ]
    return " ".join(["pfseg train", *map(shlex.quote, given)])


def _stored_settings(data: FolderData) -> tuple[str, dict[str, object]]:
    """The file in conf/dataset that is named as the data set, or else `folder`; and the settings in it."""
    for choice in (data.name, "folder"):
        with suppress(ConfigError):
            composed = compose("prepare", [f"dataset={choice}", "src=.", "out=."]).dataset
            raw = cast(dict[str, object], OmegaConf.to_container(composed, resolve=True))
            given = {key: value for key, value in data.dump().items() if raw.get(key) == "???"}
            return choice, validate(raw | given, FolderData).dump() | dict.fromkeys(given)
    raise AssertionError("conf/dataset/folder.yaml is part of pfseg")


def _check(out: Path, src: Path | None, workers: int, console: Console) -> None:
    results = list(find_faults(out, src, workers=workers))
    faults = [fault for fault in results if fault is not None]
    intact = f"{len(results) - len(faults):,} files"
    for fault in faults[:_SHOWN]:
        terminal.line(console, fault)
    if faults:
        raise DataError(
            f"{len(faults):,} faults, {intact} are as they were; the first: {faults[0]}; give the command without "
            "verify=only to write missing and damaged patches again"
        )
    terminal.line(console, f"{intact} in {' and '.join(map(str, filter(None, (out, src))))} are as they were")
