"""The evaluation of one checkpoint in every rank, and the files that rank 0 leaves in its folder.

results.json                           all scores, classes and the confusion matrix
results.html                           the same to look at, with the pictures
classes.csv, confusion.csv, images.csv per class, [truth][prediction] in pixels, per image
confusion.png, samples.png, worst.png, best.png
samples/                               maps of the worst and best images, for loggers that overlay them
scenes/                                the same files for whole scenes, with score=both
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.build import build_dataset, build_evaluator, build_model
from pfseg.config.check import dataset_changes
from pfseg.config.schema import Evaluate, Train
from pfseg.config.stored import training_settings
from pfseg.data.base import ClassInfo, SegmentationDataset
from pfseg.data.loader import EvalLoader
from pfseg.data.preparation.places import scene_order, scene_places
from pfseg.engine.evaluator import BlendingEvaluator, Evaluator, SceneEvaluator
from pfseg.engine.ranks import on_every_rank, sum_ranks
from pfseg.engine.scoring import Evaluation, ImageScores, Panel
from pfseg.files import plain, shown, write_atomic
from pfseg.metrics.confusion import scores
from pfseg.reporting.evaluation import to_html
from pfseg.reporting.table import csv_text
from pfseg.runtime import jt, rank, seed_everything, world_size
from pfseg.tracking.panels import save_confusion, save_panels
from pfseg.tracking.records import RecordWriter
from pfseg.tracking.samples import MapFiles, save_maps
from pfseg.weights.checkpoint import SECTIONS, load_checkpoint
from pfseg.weights.transfer import load_weights

CLASS_COLUMNS = ("IoU", "precision", "recall", "F1")


def run(settings: Evaluate, folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Score a checkpoint in this rank; returns what becomes `result.json`.

    Raises:
        CheckpointError: unreadable, or not of the network that it says.
        DataError: no data, or data that can't be scored as asked for.
    """
    seed_everything(settings.seed)
    assert isinstance(settings.checkpoint, str)  # the command scores several one by one
    checkpoint = on_every_rank(Path(settings.checkpoint))
    stored = _with_changes(training_settings(checkpoint, dataset_changes(settings), trust=True), settings)
    arrays, meta = load_checkpoint(checkpoint)
    dataset = build_dataset(stored.dataset, settings.split)
    model = build_model(stored.model, dataset.num_classes)
    weights = {key: value for key, value in arrays.items() if not key.startswith(SECTIONS)}
    load_weights(model, weights, settings.checkpoint)
    model.eval()
    evaluator = _build(settings, stored, dataset, model)
    names = [info.name for info in dataset.classes]
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None

    def write(event: str, **fields: Any) -> None:
        if records:
            records.write(event, step=meta["progress"]["step"], epoch=meta["epoch"], **fields)

    def show(done: int, total: int) -> None:
        if records:
            records.progress("evaluating", done, total, step=meta["progress"]["step"], epoch=meta["epoch"])

    device = "cuda" if jt.flags.use_cuda else "cpu"
    write("start", steps=0, ranks=world_size(), device=device, classes=names, images_train=0, images_val=len(dataset))
    try:
        found = evaluator.run(model.predict, show)
        for warning in evaluator.loader.pop_warnings():
            write("message", level="warning", text=warning)
    finally:
        evaluator.loader.close()
    _gather(found, folder)
    result = _scores(found, names, settings.exclude)
    scenes = _scores(found.scenes, names, settings.exclude) if found.scenes else {}
    samples: list[MapFiles] = []
    if rank() == 0:
        samples = _save_extremes(folder, meta["progress"]["step"], found.details)
        used = {key: getattr(settings, key) for key in ("split", "score", "overlap", "scales", "flips", "exclude")}
        used |= {"eval_size": stored.dataset.eval_size or "whole", "contrast": stored.dataset.eval_contrast or "own"}
        results = {"checkpoint": settings.checkpoint, "step": meta["progress"]["step"], **used}
        results |= _results(found, result, names)
        if found.scenes:
            results["scenes"] = _results(found.scenes, scenes, names)
            _write_files(folder / "scenes", found.scenes, scenes, dataset.classes)
        _write_files(folder, found, result, dataset.classes)
        write_atomic(folder / "results.json", json.dumps(plain(results), indent=1, allow_nan=False))
        write_atomic(folder / "results.html", to_html(folder, plain(results), dataset.classes))
    write(
        "val",
        **{f"val/{key}": value for key, value in result.items()},
        **{f"val/scenes_{key}": value for key, value in scenes.items() if "/" not in key},
        exclude=settings.exclude,
        panels="samples.png" if found.panels else None,
        samples=samples,
        best=False,
    )
    write("confusion", confusion=found.confusion.tolist())
    write("message", level="info", text=f"page: {shown(folder / 'results.html')}")
    write("end", status="done")
    return {"status": "done", "images": found.images, **result}


def _with_changes(stored: Train, settings: Evaluate) -> Train:
    """The settings of the training with what the evaluation changes in them."""
    if settings.batch_size is not None:
        stored.batch_size = settings.batch_size
    if settings.eval_size is not None:
        stored.dataset.eval_size = None if settings.eval_size == "whole" else settings.eval_size
    if settings.contrast is not None:
        stored.dataset.eval_contrast = None if settings.contrast == "own" else settings.contrast
    stored.trainer.num_samples = settings.num_samples
    return stored


def _build(settings: Evaluate, stored: Train, dataset: SegmentationDataset, model: Any) -> Evaluator:
    names = [info.name for info in dataset.classes]
    options: dict[str, Any] = {
        "boundary": settings.boundary,
        "details": partial(ImageScores, names, settings.exclude, settings.num_samples),
    }
    build = partial(build_evaluator, stored, dataset, model)
    views = {"overlap": settings.overlap, "scales": settings.scales, "flips": settings.flips}
    if settings.score == "patches":
        plain_views = views == {"overlap": 0, "scales": [1], "flips": "none"}
        kind = Evaluator if plain_views else BlendingEvaluator
        evaluator: Evaluator = build(kind, **options, **({} if plain_views else views))
        return evaluator
    root = stored.dataset.root
    places = scene_places(dataset, settings.split, Path(root) if root else None)
    loader = partial(EvalLoader, indices=scene_order(places, rank(), world_size()))
    patches = settings.score == "both"
    scenes: Evaluator = build(SceneEvaluator, loader=loader, places=places, patches=patches, **options, **views)
    return scenes


def _gather(found: Evaluation, folder: Path) -> None:
    """Bring the scores and pictures of single images to rank 0, through the folder that all ranks share."""
    if world_size() == 1:
        return
    kinds = {"images": found, **({"scenes": found.scenes} if found.scenes else {})}
    for kind, part in kinds.items():
        if rank() and part.details:
            part.details.save(folder / f"{kind}-rank{rank()}.npz")
    sum_ranks(np.zeros(1))  # waits for all ranks
    if rank() == 0:
        for kind, part in kinds.items():
            for other in range(1, world_size()):
                path = folder / f"{kind}-rank{other}.npz"
                if part.details:
                    part.details.merge(path)
                path.unlink()


def _scores(found: Evaluation, names: Sequence[str], exclude: Sequence[str]) -> dict[str, float]:
    boundary = found.boundary.scores(names, exclude) if found.boundary else {}
    return scores(found.confusion, names, exclude) | boundary


def _results(found: Evaluation, result: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    return {"images": found.images, **result, "classes": names, "confusion": found.confusion.tolist()}


def _write_files(folder: Path, found: Evaluation, result: dict[str, float], classes: Sequence[ClassInfo]) -> None:
    names = [info.name for info in classes]
    pixels = found.confusion.sum(axis=1)
    rows = [
        [name, int(count), *(result[f"{column}/{name}"] for column in CLASS_COLUMNS)]
        for name, count in zip(names, pixels, strict=True)
    ]
    write_atomic(folder / "classes.csv", csv_text(["class", "pixels", *CLASS_COLUMNS], rows))
    matrix = [[name, *counts] for name, counts in zip(names, found.confusion.tolist(), strict=True)]
    write_atomic(folder / "confusion.csv", csv_text(["truth \\ prediction", *names], matrix))
    save_confusion(folder / "confusion.png", found.confusion, names)
    if found.panels:
        save_panels(folder / "samples.png", found.panels, classes)
    if found.details is None:
        return
    write_atomic(folder / "images.csv", csv_text(["image", "mIoU", "OA"], sorted(found.details.rows)))
    for file, chosen in (("worst.png", found.details.worst), ("best.png", found.details.best)):
        if chosen:
            save_panels(folder / file, _scored(chosen), classes)


def _save_extremes(folder: Path, step: int, details: ImageScores | None) -> list[MapFiles]:
    """Write the maps of the worst and the best images, for loggers that overlay them."""
    if details is None:
        return []
    kinds = {"worst": details.worst, "best": details.best}
    panels = [
        panel._replace(name=f"{kind}: {panel.name}") for kind, chosen in kinds.items() for panel in _scored(chosen)
    ]
    return save_maps(folder, step, panels, [None] * len(panels))


def _scored(chosen: Sequence[tuple[float, Panel]]) -> list[Panel]:
    """Panels whose names tell the score."""
    return [panel._replace(name=f"{panel.name}, mIoU {score:.1f}") for score, panel in chosen]
