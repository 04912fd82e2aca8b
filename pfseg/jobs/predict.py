"""Prediction of images, in one process or in several ranks that share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pfseg.config.commands import Predict
from pfseg.devices import rank
from pfseg.errors import DataError, PfsegError, unforeseen
from pfseg.jobs.predictor import Predictor, load_predictor
from pfseg.prediction.folder import Task, find_images, plan
from pfseg.prediction.maps import Maps
from pfseg.prediction.rows import predict_resized, predict_rows
from pfseg.prediction.shares import Shares
from pfseg.tracking.records import RecordWriter


class Stopped(Exception):
    """The prediction was told to stop."""


def run(settings: Predict, folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Predict the images that no other rank predicts; `folder` is that of `Shares`."""
    predictor, tasks = load_predictor(settings), find_tasks(settings)
    shares, records = Shares(folder, rank()), RecordWriter(folder / "metrics.jsonl")
    left = {str(task.image): task for task in tasks if settings.overwrite or not task.done}
    total = sum(task.size for task in tasks)
    shares.advance(total - sum(task.size for task in left.values()) if rank() == 0 else 0)

    def advance(size: float) -> None:
        records.progress("predicting", round(shares.advance(size)), total, step=0, epoch=0)
        if stop():
            raise Stopped

    try:
        for name in shares.claim([*left]):
            notes, failure = attempt(left[name], predictor, partial(_scaled, advance, left[name].size), settings)
            shares.finish(name, failure)
            for note in notes:
                records.write("message", step=0, epoch=0, level="info", text=note)
    except Stopped:
        return {"status": "stopped"}
    return {"status": "done"}


def _scaled(advance: Callable[[float], None], size: int, share: float) -> None:
    advance(share * size)


def find_tasks(settings: Predict) -> list[Task]:
    """All images and what they become; raises ConfigError and DataError."""
    output = Path(settings.output)
    root, images = find_images(settings.input, output, settings.asset)
    return plan(root, images, output, settings.outputs, settings.format)


def attempt(
    task: Task, predictor: Predictor, progress: Callable[[float], None], settings: Predict
) -> tuple[list[str], str | None]:
    """Predict an image; returns what to tell the user, and why it failed, if it did.

    Raises:
        WriteError: a map can't be written.
        Stopped: `progress` raised it.
    """
    try:
        return predict_image(task, predictor, progress, percent=settings.percent), None
    except Stopped:
        raise
    except PfsegError as error:
        if not isinstance(error, DataError):
            raise
        failure = str(error)
    except Exception as error:  # whatever one image holds, the others are predicted
        failure = unforeseen(task.image, error)
    return [f"failed: {failure}"], failure


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
