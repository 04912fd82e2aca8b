"""Maps of any image: `pfseg predict checkpoint=<run> input=<image, folder or pattern> output=<folder>`.

See conf/predict.yaml for the keys, and `pfseg.prediction.maps` for what is written. `pfseg-predict` is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pfseg.config import compose as config
from pfseg.config.checks import refuse_foreign
from pfseg.data.base import ClassInfo, parse_classes
from pfseg.data.normalise import Normalise
from pfseg.errors import CheckpointError, DataError
from pfseg.inference.windows import Inference
from pfseg.launch.driver import JobStopped
from pfseg.prediction.folder import Task, find_images, open_record, plan
from pfseg.prediction.image import Image, bounded_cache
from pfseg.prediction.maps import Maps
from pfseg.prediction.rows import predict_resized, predict_rows
from pfseg.tracking import terminal
from pfseg.tracking.progress import ConsoleProgress, collected_signals

Config = dict[str, Any]
# These change the maps.
_CHANGING = (
    "window",
    "overlap",
    "resize",
    "scales",
    "flips",
    "bands",
    "stretch",
    "contrast",
    "nodata",
)  # change the maps


@dataclass
class Predictor:
    """A network and how it is applied to images.

    Attributes:
        inference: probabilities of windows.
        normalise: from pixels to what the network takes.
        classes: the class table.
        resize: (h, w) that images are resized to as a whole; None for windows.
        reading: keywords of `pfseg.prediction.image.Image`.
    """

    inference: Inference
    normalise: Normalise
    classes: tuple[ClassInfo, ...]
    resize: tuple[int, int] | None
    reading: dict[str, Any]


def run(job: Config) -> None:
    """Predict as configured.

    Raises:
        ConfigError: settings, input and output don't fit together; nothing was written.
        CheckpointError: unusable.
        DataError: some images could not be predicted; the others were.
        WriteError: the output can't be written.
        JobStopped: SIGINT or SIGTERM came.
    """
    console = terminal.console()
    output = Path(job["output"])
    root, images = find_images(job["input"], output)
    tasks = plan(root, images, output, job["outputs"], job["format"])
    predictor = load_predictor(job)  # before anything is written
    with open(job["checkpoint"], "rb") as file:
        name = f"{Path(job['checkpoint']).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"
    open_record(output, {"checkpoint": name, **{key: job[key] for key in _CHANGING}}, overwrite=job["overwrite"])
    left = [task for task in tasks if job["overwrite"] or not task.done]
    skipped = len(tasks) - len(left)
    with ConsoleProgress(console, "predicting") as progress, bounded_cache():
        total = sum(task.size for task in tasks)
        progress.begin(total, total - sum(task.size for task in left))
        failures = _predict_all(left, predictor, progress, console, skipped)
    before = f", {skipped:,} were finished before" if skipped else ""
    terminal.line(console, f"{len(left) - len(failures):,} images predicted into {output}{before}")
    if failures:
        raise DataError(f"{len(failures):,} of {len(tasks):,} images could not be predicted; the first: {failures[0]}")


def _predict_all(
    tasks: Sequence[Task], predictor: Predictor, progress: ConsoleProgress, console: Console, skipped: int
) -> list[str]:
    """Predict image after image; returns why some could not be."""
    failures: list[str] = []
    with collected_signals() as stopped:
        for number, task in enumerate(tasks):
            try:
                notes = predict_image(task, predictor, _Advance(task, progress.advance, stopped))
            except _Stopped as stop:
                raise JobStopped(
                    f"stopped after {skipped + number - len(failures):,} of {skipped + len(tasks):,} images; the same "
                    "command goes on from there",
                    128 + stopped[0],
                ) from stop
            except DataError as error:
                failures.append(str(error))
                notes = [f"failed: {error}"]
            for note in notes:
                terminal.line(console, note)
    return failures


def predict_image(task: Task, predictor: Predictor, progress: Callable[[float], None]) -> list[str]:
    """Predict one image and write its maps, all of them or none.

    Args:
        task: image and files.
        predictor: network and settings.
        progress: called with the share of the image that was finished since the last call.

    Returns:
        Warnings for the user.

    Raises:
        DataError: the image can't be read.
        WriteError: a map can't be written.
    """
    with Image(task.image, **predictor.reading) as image:
        pixels = image.shape[0] * image.shape[1]
        maps = Maps(task.targets, image, predictor.classes, geotiff=task.geotiff)
        options: dict[str, Any] = {
            "probabilities": "probabilities" in task.targets,
            "progress": lambda count: progress(count / pixels),
        }
        try:
            if predictor.resize is not None:
                rows = predict_resized(image, predictor.resize, predictor.inference, predictor.normalise, **options)
            else:
                rows = predict_rows(image, predictor.inference, predictor.normalise, **options)
            for each in rows:
                maps.write(each)
            maps.publish()
        finally:
            maps.discard()
        return [*image.warnings, *maps.warnings]


def load_predictor(job: Config) -> Predictor:
    """Build the network of a checkpoint and what belongs to it, as the settings of `job` say.

    Raises:
        CheckpointError: no checkpoint, damaged, or of code that is not trusted.
        ConfigError: windows that the network doesn't take.
    """
    from pfseg.build import build_model
    from pfseg.engine import state
    from pfseg.inference.deploy import as_function
    from pfseg.inference.fold import fold_batchnorm
    from pfseg.weights.checkpoint import SECTIONS, load_checkpoint, load_meta

    path = Path(job["checkpoint"])
    stored = load_meta(path)["config"]
    try:
        model_config, data = stored["model"], stored["dataset"]
        classes = parse_classes(data["classes"])
        normalise = Normalise(data["mean"], data["std"])
        factor, size = data["scale"], data["eval_size"] or data["crop_size"]
    except KeyError as error:
        raise CheckpointError(
            f"{path} doesn't say how it was trained ({error} is missing in it); use another"
        ) from error
    if not job["trust"]:
        refuse_foreign(path, model_config)
    arrays, _ = load_checkpoint(path)
    model = build_model(model_config, len(classes))
    state.load_model(model, {key: value for key, value in arrays.items() if not key.startswith(SECTIONS)}, str(path))
    fold_batchnorm(model)
    window = job["window"] or [round(side / factor) for side in size]
    inference = Inference(
        as_function(model),
        num_classes=len(classes),
        window=tuple(job["resize"] or window),
        overlap=job["overlap"],
        scales=[scale * (1.0 if job["resize"] else factor) for scale in job["scales"]],
        flips=job["flips"],
        stride=model.output_stride,
        min_size=getattr(model, "min_size", 1),
        batch_size=job["batch_size"],
    )
    reading = {key: job[key] if job[key] is not None else data.get(key) for key in ("bands", "stretch")}
    contrast = data["eval_contrast"] if job["contrast"] is None else job["contrast"]
    reading["contrast"] = None if contrast == "own" else contrast
    resize = tuple(job["resize"]) if job["resize"] else None
    return Predictor(inference, normalise, classes, resize, {**reading, "nodata": job["nodata"]})


def main() -> None:
    """Run the command line."""
    config.main(run, "predict")


class _Stopped(Exception):
    """A signal came."""


class _Advance:
    """Hands progress within an image on, and ends it when a signal has come."""

    def __init__(self, task: Task, advance: Callable[[float], None], stopped: list[int]) -> None:
        self._task, self._advance, self._stopped = task, advance, stopped

    def __call__(self, share: float) -> None:
        self._advance(share * self._task.size)
        if self._stopped:
            raise _Stopped


if __name__ == "__main__":
    main()
