"""`pfseg predict`: maps of any image; docs/maps.md says what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from pfseg.commands.predictor import Predictor, load_predictor
from pfseg.config.check import dataset_changes
from pfseg.config.commands import Predict
from pfseg.errors import DataError, PfsegError, unforeseen
from pfseg.launch.driver import JobStopped
from pfseg.prediction.folder import Task, find_images, open_record, plan
from pfseg.prediction.maps import Maps
from pfseg.prediction.rows import predict_resized, predict_rows
from pfseg.signals import collected_signals
from pfseg.tracking import terminal
from pfseg.tracking.terminal import ConsoleProgress

# What changes the maps.
_CHANGING = (
    "window", "overlap", "resize", "scales", "flips", "bands", "stretch", "contrast", "nodata", "percent", "region",
    "scale_to",
)  # fmt: skip


def run(settings: Predict) -> None:
    """Predict as configured."""
    console = terminal.console()
    output = Path(settings.output)
    root, images = find_images(settings.input, output, settings.asset)
    tasks = plan(root, images, output, settings.outputs, settings.format)
    predictor = load_predictor(settings)  # before anything is written
    given = settings.dump()
    record = {"checkpoint": predictor.name, **{key: given[key] for key in _CHANGING}}
    if changes := dataset_changes(settings):
        record["dataset"] = changes
    open_record(output, record, overwrite=settings.overwrite)
    left = [task for task in tasks if settings.overwrite or not task.done]
    with ConsoleProgress(console, "predicting") as progress:
        total = sum(task.size for task in tasks)
        progress.begin(total, total - sum(task.size for task in left))
        skipped = len(tasks) - len(left)
        failures = _predict_all(left, predictor, progress, console, skipped, percent=settings.percent)
    before = f", {len(tasks) - len(left):,} were finished before" if len(left) < len(tasks) else ""
    terminal.line(console, f"{len(left) - len(failures):,} images predicted into {output}{before}")
    if failures:
        raise DataError(f"{len(failures):,} of {len(tasks):,} images could not be predicted; the first: {failures[0]}")


def _predict_all(
    tasks: Sequence[Task],
    predictor: Predictor,
    progress: ConsoleProgress,
    console: Console,
    skipped: int,
    *,
    percent: bool,
) -> list[str]:
    """Predict image after image; returns why some could not be."""
    failures: list[str] = []
    with collected_signals() as signals:
        for number, task in enumerate(tasks):

            def advance(share: float, size: int = task.size) -> None:
                progress.advance(share * size)
                if signals:
                    raise _Stopped

            try:
                notes = predict_image(task, predictor, advance, percent=percent)
            except _Stopped:
                done, every = skipped + number - len(failures), skipped + len(tasks)
                text = f"stopped after {done:,} of {every:,} images; the same command goes on from there"
                raise JobStopped(text, 128 + signals[0]) from None
            except PfsegError as error:
                if not isinstance(error, DataError):
                    raise
                failures.append(str(error))
                notes = [f"failed: {error}"]
            except Exception as error:  # whatever one image holds, the others are predicted
                failures.append(unforeseen(task.image, error))
                notes = [f"failed: {failures[-1]}"]
            for note in notes:
                terminal.line(console, note)
    return failures


def predict_image(
    task: Task, predictor: Predictor, progress: Callable[[float], None], *, percent: bool = False
) -> list[str]:
    """Predict one image and write its maps, all of them or none; returns warnings for the user.

    `percent`: see `Maps`; `progress` is called with the share of the image that was finished since the last call.

    Raises:
        DataError: the image can't be read.
        WriteError: a map can't be written.
    """
    with predictor.open(task.image) as image:
        pixels = image.shape[0] * image.shape[1]
        maps = Maps(
            task.targets,
            image,
            predictor.classes,
            geotiff=task.geotiff,
            display=predictor.display,
            percent=percent,
        )
        predict = partial(predict_resized, size=predictor.resize) if predictor.resize else predict_rows
        rows = predict(
            image,
            sliding=predictor.sliding,
            normalise=predictor.normalise,
            wanted=task.targets,
            progress=lambda count: progress(count / pixels),
            black=predictor.record is not None,
        )
        try:
            for each in rows:
                maps.write(each)
            maps.publish()
        finally:
            maps.discard()
        return [*predictor.reader.pop_notes(), *maps.warnings]


class _Stopped(Exception):
    """A signal came."""
