"""Cut the scenes of an archive into patches: `pfseg prepare dataset=isaid src=<archive> out=<patches>`.

See conf/prepare.yaml for the keys, and `pfseg.data.preparation.folder` for what is written.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from pfseg import __version__
from pfseg.build import build_dataset, instantiate
from pfseg.config import compose as config
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
from pfseg.tracking.progress import ConsoleProgress, collected_signals

Config = dict[str, Any]
_SHOWN = 20  # faults on the terminal
_TEST = "test"  # the split that may come without masks


def run(job: Config) -> None:
    """Prepare as configured, or check what an earlier preparation wrote.

    Raises:
        ConfigError: settings, source or destination don't fit together; nothing was written.
        DataError: no scenes, or some that could not be cut; the others were.
        JobStopped: SIGINT or SIGTERM came.
    """
    console = Console() if os.environ.get("COLUMNS") or Console().is_terminal else Console(width=120)
    workers = len(os.sched_getaffinity(0)) if job["workers"] == "auto" else job["workers"]
    out = Path(job["out"])
    if job["verify"] == "only":
        _check(out, workers, console)
        return
    src, data = Path(job["src"]), job["dataset"]
    _check_apart(src, out)
    scenes = _find_scenes(src, data)
    layout = make_layout(
        dict.fromkeys(scene.split for scene in scenes),
        data["splits"],
        data["images"],
        data["masks"],
        data["mask_suffix"],
    )
    cutter = Cutter(
        classes=parse_classes(data["classes"]),
        ignore=data["ignore"],
        size=data["prepare"]["size"],
        stride=data["prepare"]["stride"],
        bands=data["bands"],
        stretch=data["stretch"],
        compression=job["compression"],
        verify=job["verify"],
    )
    keys = {scene.key for scene in scenes}
    with (
        PatchFolder(out, layout, _settings(data), keys, overwrite=job["overwrite"]) as folder,
        collected_signals() as stopped,
    ):
        console.print(f"{len(scenes):,} scenes of {data['name']} from {src} to {out}", highlight=False, soft_wrap=True)
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


def main() -> None:
    """Run the command line."""
    config.main(run, "prepare")


def _check_apart(src: Path, out: Path) -> None:
    source, target = src.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"out={out} and src={src} lie in each other: patches and scenes would mix; give a folder beside src"
        )


def _find_scenes(src: Path, data: Config) -> SceneList:
    """Find the scenes that can be cut; the others become faults."""
    finder, prefix = data["prepare"]["scenes"], {"root": str(src), "on_error": "skip"}
    if finder is not None:
        given = instantiate(finder, src=src)
    else:

        def build(split: str) -> FolderDataset:
            return cast(FolderDataset, build_dataset(data | prefix, split))

        given = find_in_folders(src, data["splits"], build, data["images"], data["mask_suffix"])
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


def _settings(data: Config) -> Config:
    """Whatever changes the patches."""
    classes = parse_classes(data["classes"])
    table = [[info.name, list(info.color), value] for info, value in zip(classes, class_ids(classes), strict=True)]
    keys = ("ignore", "images", "masks", "mask_suffix", "bands", "stretch", "splits")
    cut = {key: data["prepare"][key] for key in ("size", "stride", "scenes")}
    return {"dataset": data["name"], **cut, "classes": table, **{key: data[key] for key in keys}}


def _conclude(
    data: Config,
    cutter: Cutter,
    layout: Layout,
    folder: PatchFolder,
    scenes: SceneList,
    outcome: Outcome,
    console: Console,
) -> None:
    """Write index and report, show a summary, and fail if something failed."""
    prepared, out = data["prepare"], folder.out
    head = {"dataset": data["name"], "pfseg": __version__, "size": prepared["size"], "stride": prepared["stride"]}
    index = make_index(head, cutter.classes, cutter.codes, layout, outcome.scenes, folder.done)
    expected = prepared["expected"]
    report = make_report(index, outcome, folder.done, expected=expected, faults=scenes.faults, notes=scenes.notes)
    write_index(out, index)
    write_file(out / REPORT, report.encode())
    table = Table("split", "scenes", "patches")
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


def _training_command(data: Config, layout: Layout, out: Path) -> str:
    """How to train on the patches; what the preparation has done already is not to be done again."""
    again = [f"dataset={data['name']}", f"dataset.root={shlex.quote(str(out))}"]
    kept = {split: layout.lists.get(split, folder) for split, folder in layout.folders.items()}
    if data["splits"] is not None and any(data["splits"].get(split) != source for split, source in kept.items()):
        again.append("dataset.splits=null")
    if data["bands"] is not None:
        again.append("dataset.bands=null")
    return f"python train.py {' '.join(again)}"


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


if __name__ == "__main__":
    main()
