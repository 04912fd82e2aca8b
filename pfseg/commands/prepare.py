"""`pfseg prepare`: cut the scenes of an archive into patches; see `pfseg.data.preparation.layout` for the files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from pfseg import __version__
from pfseg.build import build_dataset, instantiate
from pfseg.config.commands import PrepareJob
from pfseg.config.data_settings import FolderData
from pfseg.data.archives.folders import SceneList, find_in_folders
from pfseg.data.base import Scene, class_ids, parse_classes
from pfseg.data.folder import FolderDataset
from pfseg.data.preparation.cutting import Cutter
from pfseg.data.preparation.files import write_file
from pfseg.data.preparation.folder import PatchFolder
from pfseg.data.preparation.index import find_faults, make_index, write_index
from pfseg.data.preparation.layout import REPORT, Layout, make_layout
from pfseg.data.preparation.preparation import Outcome, Preparation
from pfseg.data.preparation.report import compare, make_report
from pfseg.errors import ConfigError, DataError
from pfseg.launch.driver import JobStopped
from pfseg.tracking import terminal
from pfseg.tracking.terminal import ConsoleProgress, collected_signals

_SHOWN = 20  # faults on the terminal
_TEST = "test"  # the split that may come without masks


def run(settings: PrepareJob) -> None:
    """Prepare as configured, or check what an earlier preparation wrote.

    Raises:
        ConfigError: settings, source or destination don't fit together; nothing was written.
        DataError: no scenes, or some that could not be cut; the others were.
        JobStopped: SIGINT or SIGTERM came.
    """
    console = terminal.console()
    workers = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    out = Path(settings.out)
    if settings.verify == "only":
        _check(out, workers, console)
        return
    src, data = Path(settings.src), settings.dataset
    _check_apart(src, out)
    scenes = _find_scenes(src, data)
    layout = make_layout(
        dict.fromkeys(scene.split for scene in scenes),
        data.splits,
        data.images,
        data.masks,
        data.mask_suffix,
    )
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
        collected_signals() as stopped,
    ):
        console.print(f"{len(scenes):,} scenes of {data.name} from {src} to {out}", highlight=False, soft_wrap=True)
        with ConsoleProgress(console, "cutting") as progress:
            preparation = Preparation(
                src, cutter, folder, workers=workers, progress=progress, stop=lambda: bool(stopped)
            )
            outcome = preparation.run(scenes)
        if outcome.stopped:
            raise JobStopped(
                f"stopped after {len(folder.done):,} of {len(scenes):,} scenes; the same command goes on from there",
                128 + stopped[0],
            )
        _conclude(data, cutter, layout, folder, scenes, outcome, console)


def _check_apart(src: Path, out: Path) -> None:
    source, target = src.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"out={out} and src={src} lie in each other: patches and scenes would mix; give a folder beside src"
        )


def _find_scenes(src: Path, data: FolderData) -> SceneList:
    """Find the scenes that can be cut; the others become faults."""
    if data.prepare.scenes is not None:
        given = instantiate(data.prepare.scenes, src=src)
    else:
        folders = data.model_copy(update={"root": str(src), "on_error": "skip"})

        def build(split: str) -> FolderDataset:
            return cast(FolderDataset, build_dataset(folders, split))

        given = find_in_folders(src, data.splits, build, data.images, data.mask_suffix)
    found = SceneList()
    found.faults, found.notes = list(getattr(given, "faults", ())), list(getattr(given, "notes", ()))
    known: dict[str, Scene] = {}
    for scene in given:
        if scene.mask is None and scene.split != _TEST:
            found.faults.append(f"{scene.image} has no mask (split {scene.split})")
        elif (other := known.setdefault(scene.key, scene)) is not scene:
            found.faults.append(f"{scene.image} would give patches of the same names as {other.image}: rename either")
        else:
            found.append(scene)
    if not found:
        raise DataError(f"none of the {len(given)} images in {src} has a mask; the first: {found.faults[0]}")
    return found


def _settings(data: FolderData) -> dict[str, Any]:
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
    prepared, out = data.prepare, folder.out
    plain = prepared.dump()
    head = {"dataset": data.name, "pfseg": __version__, "size": plain["size"], "stride": plain["stride"]}
    index = make_index(head, cutter, layout, outcome.scenes, folder.done)
    expected = prepared.expected
    report = make_report(index, outcome, folder.done, expected=expected, faults=scenes.faults, notes=scenes.notes)
    write_index(out, index)
    write_file(out / REPORT, report.encode())
    table = terminal.table("split", "scenes", "patches", numbers=("scenes", "patches"))
    for split, part in index["splits"].items():
        table.add_row(split, f"{part['scenes']:,}", f"{len(part['patches']):,}")
    console.print(table)
    oddities = sum(1 for record in folder.done.values() if record["unknown"])
    lines = [*compare(index, expected), *scenes.notes]
    lines += [f"{oddities:,} masks have colours outside the class table, which are ignored"] if oddities else []
    lines += [f"{outcome.skipped:,} scenes had been finished before"] if outcome.skipped else []
    lines += [f"report: {out / REPORT}", f"train: {_training_command(data, layout, out)}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    failures = [*(f"{key}: {reason}" for key, reason in outcome.failures.items()), *scenes.faults]
    if failures:
        raise DataError(
            f"{len(outcome.failures)} of {len(scenes)} scenes failed and the archive has {len(scenes.faults)} faults, "
            f"listed in {out / REPORT}; the first: {failures[0]}"
        )


def _training_command(data: FolderData, layout: Layout, out: Path) -> str:
    """How to train on the patches; what the preparation has done already is not to be done again."""
    again = [f"dataset={data.name}", f"dataset.root={shlex.quote(str(out))}"]
    kept = {split: layout.lists.get(split, folder) for split, folder in layout.folders.items()}
    if data.splits is not None and any(data.splits.get(split) != source for split, source in kept.items()):
        again.append("dataset.splits=null")
    if data.bands is not None:
        again.append("dataset.bands=null")
    return f"pfseg train {' '.join(again)}"


def _check(out: Path, workers: int, console: Console) -> None:
    checked, faults = 0, []
    for fault in find_faults(out, workers=workers):
        checked += fault is None
        if fault is not None:
            faults.append(fault)
            if len(faults) <= _SHOWN:
                console.print(fault, highlight=False, markup=False, soft_wrap=True)
    if faults:
        raise DataError(
            f"{out} has {len(faults):,} faults, {checked:,} patches are as they were written; the first: {faults[0]}; "
            "give the command without verify=only to write missing and damaged patches again"
        )
    console.print(f"{checked:,} patches in {out} are as they were written", highlight=False, soft_wrap=True)
