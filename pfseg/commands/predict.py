"""`pfseg predict`: maps of any image; docs/maps.md says what is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from pfseg.build import display_positions, restore_network
from pfseg.config.check import dataset_changes
from pfseg.config.commands import Predict
from pfseg.config.stored import training_settings
from pfseg.data.base import ClassInfo, parse_classes
from pfseg.data.inputs import Record, misfit, patch_bands, patch_folder
from pfseg.data.normalise import Normalise
from pfseg.data.reader import Image, ImageReader
from pfseg.errors import ConfigError, DataError, PfsegError, unforeseen
from pfseg.inference.sliding import SlidingWindows, WindowGrid
from pfseg.inference.views import Views
from pfseg.launch.driver import JobStopped
from pfseg.prediction.folder import Task, find_images, open_record, plan
from pfseg.prediction.maps import Maps
from pfseg.prediction.rows import predict_resized, predict_rows
from pfseg.signals import collected_signals
from pfseg.tracking import terminal
from pfseg.tracking.terminal import ConsoleProgress

# What changes the maps.
_CHANGING = ("window", "overlap", "resize", "scales", "flips", "bands", "stretch", "contrast", "nodata")


class Predictor(NamedTuple):
    """A network and how it is applied to images."""

    sliding: SlidingWindows
    normalise: Normalise
    classes: tuple[ClassInfo, ...]
    resize: tuple[int, int] | None  # (h, w) that images are resized to as a whole; None for windows
    reader: ImageReader
    display: list[int] | None  # see `pfseg.data.display`
    record: Record | None  # of `pfseg.data.inputs`; None for checkpoints that have none

    def open(self, path: Path) -> Image:
        """Open an image as those of the training were read; patches of a preparation as they are."""
        if self.record and (folder := patch_folder(path)):
            return replace(self.reader, bands=patch_bands(folder, self.reader.bands), stretch=None).open(path)
        image = self.reader.open(path)
        if self.record and self.reader.checks and (note := misfit(image, self.record)):
            self.reader.note(note)
        return image


def run(settings: Predict) -> None:
    """Predict as configured."""
    console = terminal.console()
    output = Path(settings.output)
    root, images = find_images(settings.input, output)
    tasks = plan(root, images, output, settings.outputs, settings.format)
    predictor = load_predictor(settings)  # before anything is written
    with open(settings.checkpoint, "rb") as file:
        name = f"{Path(settings.checkpoint).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"
    given = settings.dump()
    record = {"checkpoint": name, **{key: given[key] for key in _CHANGING}}
    if changes := dataset_changes(settings):
        record["dataset"] = changes
    open_record(output, record, overwrite=settings.overwrite)
    left = [task for task in tasks if settings.overwrite or not task.done]
    with ConsoleProgress(console, "predicting") as progress:
        total = sum(task.size for task in tasks)
        progress.begin(total, total - sum(task.size for task in left))
        failures = _predict_all(left, predictor, progress, console, len(tasks) - len(left))
    before = f", {len(tasks) - len(left):,} were finished before" if len(left) < len(tasks) else ""
    terminal.line(console, f"{len(left) - len(failures):,} images predicted into {output}{before}")
    if failures:
        raise DataError(f"{len(failures):,} of {len(tasks):,} images could not be predicted; the first: {failures[0]}")


def _predict_all(
    tasks: Sequence[Task], predictor: Predictor, progress: ConsoleProgress, console: Console, skipped: int
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
                notes = predict_image(task, predictor, advance)
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


def predict_image(task: Task, predictor: Predictor, progress: Callable[[float], None]) -> list[str]:
    """Predict one image and write its maps, all of them or none; returns warnings for the user.

    `progress` is called with the share of the image that was finished since the last call.

    Raises:
        DataError: the image can't be read.
        WriteError: a map can't be written.
    """
    with predictor.open(task.image) as image:
        pixels = image.shape[0] * image.shape[1]
        maps = Maps(task.targets, image, predictor.classes, geotiff=task.geotiff, display=predictor.display)
        predict = partial(predict_resized, size=predictor.resize) if predictor.resize else predict_rows
        rows = predict(
            image,
            sliding=predictor.sliding,
            normalise=predictor.normalise,
            probabilities="probabilities" in task.targets,
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


def load_predictor(settings: Predict) -> Predictor:
    """Build the network of a checkpoint and what belongs to it.

    Raises:
        CheckpointError: no checkpoint, damaged, or of code that is not trusted.
        ConfigError: windows that the network doesn't take.
    """
    path = Path(settings.checkpoint)
    changes = dataset_changes(settings)
    stored = training_settings(path, changes, trust=settings.trust)
    data, factor = stored.dataset, stored.dataset.scale
    classes = parse_classes(data.classes)
    takes = len(data.mean or (0, 1, 2))
    trained = restore_network(path, stored.model, len(classes), takes, settings.precision, fold=True)
    size = (trained.size, trained.size) if trained.size else data.eval_size or data.crop_size
    window = settings.window or (round(size[0] / factor), round(size[1] / factor))
    needs = trained.output_stride, trained.min_size
    if trained.size:
        _check_size(settings, window, trained.size, factor)
    scales = [scale * (1.0 if settings.resize else factor) for scale in settings.scales]
    grid = WindowGrid(settings.resize or window, settings.overlap, *needs)
    views = Views(scales, settings.flips, *needs)
    sliding = SlidingWindows(trained.network, len(classes), grid, views, settings.batch_size)
    contrast = data.eval_contrast if settings.contrast is None else settings.contrast
    record = trained.meta.get("input")
    stored_input = {key: getattr(data, key, None) for key in ("bands", "stretch")} | (record or {})
    how = stored_input | {key: value for key, value in changes.items() if key in stored_input}
    reader = ImageReader(
        bands=how["bands"] if settings.bands is None else settings.bands,
        stretch=how["stretch"] if settings.stretch is None else settings.stretch,
        contrast=None if contrast == "own" else contrast,
        nodata=settings.nodata,
    )
    if reader.channels != takes:
        raise ConfigError(
            f"bands={list(reader.bands or ())} names {reader.channels} bands, but the network takes {takes}"
        )
    normalise, display = Normalise(data.mean or (), data.std or ()), display_positions(data)
    return Predictor(sliding, normalise, classes, settings.resize, reader, display, record)


def _check_size(settings: Predict, window: tuple[int, int], size: int, factor: float) -> None:
    """Raise ConfigError if images would go into the network at another size than the only one that it takes."""
    given = {"resize": settings.resize} if settings.resize else {"window": window}
    ((key, sides),) = given.items()
    scale = 1.0 if settings.resize else factor
    if settings.scales != [1.0] or [round(side * scale) for side in sides] != [size, size]:
        raise ConfigError(
            f"{settings.checkpoint} takes images of {size}x{size} px only: leave out scales and {key}, or export the "
            "checkpoint at another size (pfseg export size=...)"
        )


class _Stopped(Exception):
    """A signal came."""
