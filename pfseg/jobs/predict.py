"""Prediction of images, in one process or in several ranks that share them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pfseg.config.commands import Predict
from pfseg.data.reader import Image
from pfseg.data.sources import by_gdal
from pfseg.devices import rank, world_size
from pfseg.errors import ConfigError, DataError, PfsegError, unforeseen
from pfseg.inference.blending import window_rows
from pfseg.jobs.predictor import Predictor, load_predictor
from pfseg.launch.worker import Result
from pfseg.prediction.folder import Task, find_images, plan
from pfseg.prediction.maps import Maps
from pfseg.prediction.rows import Rows, predict_resized, predict_rows
from pfseg.prediction.shares import Shares
from pfseg.prediction.strips import STRIPS, Strips
from pfseg.tracking.records import RecordWriter

Progress = Callable[[float], None]  # takes the share of an image that was finished since the last call
_WAIT_SECONDS = 0.2
_LARGE = 0.25  # of what each rank has to do; larger images are divided


class Stopped(Exception):
    """The prediction was told to stop."""


def run(settings: Predict, folder: Path, stop: Callable[[], bool]) -> Result:
    """Predict the images that no other rank predicts, and strips of large ones; `folder` is that of `Shares`.

    Raises:
        ConfigError: this host doesn't see the folder.
        WriteError: a file can't be written.
    """
    if not (folder / "resolved.yaml").exists():
        raise ConfigError(f"host {socket.gethostname()} doesn't see {folder}: give an output that all hosts share")
    try:
        _Rank(settings, folder, stop).predict(find_tasks(settings))
    except Stopped:
        return {"status": "stopped"}
    return {"status": "done"}


def find_tasks(settings: Predict) -> list[Task]:
    """All images and what they become; raises ConfigError and DataError."""
    output = Path(settings.output)
    root, images = find_images(settings.input, output, settings.asset)
    return plan(root, images, output, settings.outputs, settings.format)


def attempt(task: Task, work: Callable[[], list[str]]) -> tuple[list[str], str | None]:
    """Do some work on an image; returns what to tell the user, and why it failed, if it did.

    Raises:
        WriteError: a map can't be written.
        Stopped: `work` raised it.
    """
    try:
        return work(), None
    except Stopped:
        raise
    except PfsegError as error:
        if not isinstance(error, DataError):
            raise
        failure = str(error)
    except Exception as error:  # whatever one image holds, the others are predicted
        failure = unforeseen(task.image, error)
    return [f"failed: {failure}"], failure


def predict_image(task: Task, predictor: Predictor, progress: Progress, settings: Predict) -> list[str]:
    """Predict one image and write its maps, all of them or none; returns warnings for the user.

    Raises:
        DataError: the image can't be read.
        WriteError: a map can't be written.
    """
    with predictor.open(task.image) as image:
        return _write(task, predictor, image, _predicted(task, predictor, image, progress), settings)


def _predicted(task: Task, predictor: Predictor, image: Image, progress: Progress, first: int = 0) -> Iterator[Rows]:
    """Rows of an open image; `first`: see `predict_rows`."""
    pixels = image.shape[0] * image.shape[1]
    predict = (
        partial(predict_resized, size=predictor.resize) if predictor.resize else partial(predict_rows, first=first)
    )
    return predict(
        image,
        sliding=predictor.sliding,
        normalise=predictor.normalise,
        wanted=task.targets,
        progress=lambda count: progress(count / pixels),
        black=predictor.record is not None,
    )


def _write(task: Task, predictor: Predictor, image: Image, rows: Iterable[Rows], settings: Predict) -> list[str]:
    """Write the maps of an open image from all of its rows; returns warnings for the user."""
    maps = Maps(
        task.targets,
        image,
        predictor.classes,
        geotiff=task.geotiff,
        display=predictor.display,
        percent=settings.percent,
    )
    try:
        for each in rows:
            maps.write(each)
        maps.publish()
    finally:
        maps.discard()
    return [*predictor.reader.pop_notes(), *maps.warnings]


class _Rank:
    """What one rank does."""

    def __init__(self, settings: Predict, folder: Path, stop: Callable[[], bool]) -> None:
        self._settings, self._stop = settings, stop
        self._predictor, self._shares = load_predictor(settings), Shares(folder, rank())
        self._records = RecordWriter(folder / "metrics.jsonl")
        self._total = 0

    def predict(self, tasks: Sequence[Task]) -> None:
        """Predict what no other rank does of some images; raises Stopped."""
        self._total = sum(task.size for task in tasks)
        left = {str(task.image): task for task in tasks if self._settings.overwrite or not task.done}
        left |= {str(task.image): task for task in tasks if self._is_finished(task)}  # since this job began
        most = _LARGE * sum(task.size for task in left.values()) / world_size()
        large = [name for name, task in left.items() if self._is_divisible(task) and task.size > most]
        for name in large:
            notes, failure = attempt(left[name], partial(self._predict_strips, left[name]))
            self._tell([] if failure else notes)
            for _ in self._shares.claim([name] if failure else []):  # by one rank only
                self._finish(left[name], notes, failure)
        for name in self._shares.claim([name for name in left if name not in large]):
            task = left[name]
            work = partial(predict_image, task, self._predictor, partial(self._advance, task), self._settings)
            self._finish(task, *attempt(task, work))
        while rank() == 0 and not all(map(self._is_finished, left.values())):  # its result is that of the job
            if self._stop():
                raise Stopped
            time.sleep(_WAIT_SECONDS)

    def _predict_strips(self, task: Task) -> list[str]:
        """Predict strips of an image that no other rank predicts; whoever then finds all of them done writes the maps.

        Returns what to tell the user.
        """
        if self._is_finished(task):
            return []
        with self._predictor.open(task.image) as image:
            count = len(window_rows(self._predictor.sliding.grid.windows(image.shape), image.shape[0]))
            strips = Strips(Path(self._settings.output, STRIPS), task, count)
            while (first := strips.start()) is not None:
                rows = _predicted(task, self._predictor, image, partial(self._advance, task), first)
                for number in strips.claim(first):
                    if self._is_finished(task):  # another rank has failed, or written the maps
                        return []
                    strips.save(number, next(rows))
            for _ in self._shares.claim([str(task.image)] if strips.complete else []):
                found = self._stoppable(task, strips.rows(image if "overlay" in task.targets else None))
                notes = _write(task, self._predictor, image, found, self._settings)
                self._finish(task, [], None)
                strips.remove()
                return notes
        return []

    def _is_divisible(self, task: Task) -> bool:
        return self._predictor.resize is None and by_gdal(task.image)

    def _is_finished(self, task: Task) -> bool:
        return self._shares.is_finished(str(task.image))

    def _finish(self, task: Task, notes: Sequence[str], failure: str | None) -> None:
        self._shares.finish(str(task.image), failure)
        self._tell(notes)

    def _tell(self, notes: Sequence[str]) -> None:
        for note in notes:
            self._records.write("message", step=0, epoch=0, level="info", text=note)

    def _advance(self, task: Task, share: float) -> None:
        done = self._shares.advance(share * task.size) / max(1, self._total)
        self._records.progress("predicting", round(100 * done), 100, step=0, epoch=0)
        if self._stop():
            raise Stopped

    def _stoppable(self, task: Task, rows: Iterable[Rows]) -> Iterator[Rows]:
        for each in rows:
            self._advance(task, 0)
            yield each
