"""`pfseg predict`: maps of any image; docs/maps.md says what is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from pfseg.commands.train import submit_script
from pfseg.config.commands import Predict
from pfseg.config.run_settings import Slurm
from pfseg.devices import plan_ranks
from pfseg.errors import DataError
from pfseg.jobs.predict import Stopped, attempt, find_tasks, predict_image
from pfseg.jobs.predictor import Predictor, checkpoint_names, load_predictor
from pfseg.launch.driver import JobStopped, run_job
from pfseg.prediction.folder import Task, mask_folders, open_record
from pfseg.prediction.shares import Shares
from pfseg.prediction.strips import STRIPS, share_done
from pfseg.signals import STOPPING, collected_signals
from pfseg.tracking import terminal
from pfseg.tracking.console import RunConsole
from pfseg.tracking.terminal import ConsoleProgress
from pfseg.weights.calibration import digest_of

_RANKS = ".pfseg"  # folder in that of the maps, where ranks share the images out
_BEFORE = -1  # stands for earlier starts among the ranks that tell how far they are
# What changes the maps.
_CHANGING = (
    "window", "overlap", "resize", "scales", "flips", "bands", "stretch", "contrast", "nodata", "percent", "region",
    "scale_to",
)  # fmt: skip


def run(settings: Predict) -> None:
    """Predict as configured."""
    console = terminal.console()
    output, tasks = Path(settings.output), find_tasks(settings)
    if isinstance(settings.launch, Slurm):
        submit_script(settings, settings.launch, output)
        return
    for folder in mask_folders(Path(settings.input).expanduser()):
        terminal.line(console, f"{folder} is left out: it holds masks")
    ranks, gpus = plan_ranks(settings)
    given = settings.dump()
    record = {"checkpoint": checkpoint_names(settings), **{key: given[key] for key in _CHANGING}}
    if isinstance(settings.region, str) and (file := Path(settings.region)).is_file():
        record["region"] = f"{file} (sha256 {digest_of(file)[:16]})"
    if changes := settings.dataset.changes():
        record["dataset"] = changes
    left = [task for task in tasks if settings.overwrite or not task.done]
    if ranks > 1:
        open_record(output, record, overwrite=settings.overwrite)
        failures = _in_ranks(settings, tasks, left)
    else:
        os.environ |= {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {"PFSEG_DEVICE": "cpu"}
        predictor = load_predictor(settings)  # before anything is written
        open_record(output, record, overwrite=settings.overwrite)
        with ConsoleProgress(console, "predicting") as progress:
            total = sum(task.size for task in tasks)
            progress.begin(total, total - sum(task.size for task in left))
            failures = _predict_all(left, predictor, progress, console, len(tasks) - len(left), settings)
    shutil.rmtree(output / STRIPS, ignore_errors=True)
    before = f", {len(tasks) - len(left):,} were finished before" if len(left) < len(tasks) else ""
    done = len(left) - len(failures)
    terminal.line(console, f"{done:,} image{'s' * (done != 1)} predicted into {output}{before}")
    if failures:
        raise DataError(f"{len(failures):,} of {len(tasks):,} images could not be predicted; the first: {failures[0]}")


def _in_ranks(settings: Predict, tasks: Sequence[Task], left: Sequence[Task]) -> list[str]:
    """Predict in several ranks; returns why some images could not be. A folder of ranks that failed tells of them."""
    folder, kept = Path(settings.output, _RANKS), Path(settings.output, STRIPS)
    for path in (folder, *([kept] if settings.overwrite else [])):
        shutil.rmtree(path, ignore_errors=True)
    shares, shown = Shares(folder, _BEFORE), RunConsole()
    shares.advance(sum(task.size * (share_done(kept, task) if task in left else 1) for task in tasks))
    try:
        run_job(folder, settings, sinks=[shown])
    except JobStopped as error:
        done = len(tasks) - len(left) + len(shares.finished())
        text = f"stopped after {done:,} of {len(tasks):,} images; the same command goes on from there"
        raise JobStopped(text, error.exit_code) from None
    finally:
        shown.finish()
    failures = [failure for failure in shares.finished() if failure]
    shutil.rmtree(folder, ignore_errors=True)
    return failures


def _predict_all(
    tasks: Sequence[Task],
    predictor: Predictor,
    progress: ConsoleProgress,
    console: Console,
    skipped: int,
    settings: Predict,
) -> list[str]:
    """Predict image after image; returns why some could not be."""
    failures: list[str] = []
    with collected_signals() as signals:
        for number, task in enumerate(tasks):

            def advance(share: float, size: int = task.size) -> None:
                progress.advance(share * size)
                if signals:
                    raise Stopped

            try:
                notes, failure = attempt(task, partial(predict_image, task, predictor, advance, settings))
            except Stopped:
                done, every = skipped + number - len(failures), skipped + len(tasks)
                text = f"stopped after {done:,} of {every:,} images; the same command goes on from there"
                raise JobStopped(text, STOPPING[signals[0]]) from None
            failures += [failure] if failure else []
            for note in notes:
                terminal.line(console, note)
    return failures
