"""The evaluation of one checkpoint in every rank, and the files that rank 0 leaves in its folder.

Scores and pictures of whole scenes, with score=both, lie in `scenes/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.build import Trained, build_evaluator, restore_network
from pfseg.build_data import build_dataset, follow_record
from pfseg.config.schema import Evaluate, Train
from pfseg.config.stored import training_settings
from pfseg.data.base import ClassInfo, SegmentationDataset
from pfseg.data.loader import EvalLoader
from pfseg.data.preparation.places import scene_order, scene_places
from pfseg.devices import rank, world_size
from pfseg.engine.calibration import Calibrated, CalibratingEvaluator, calibrate
from pfseg.engine.evaluator import BlendingEvaluator, Evaluator, SceneEvaluator
from pfseg.engine.ranks import on_every_rank, sum_ranks
from pfseg.engine.scoring import Evaluation, ImageScores, Panel
from pfseg.files import plain, shown, write_atomic
from pfseg.launch.worker import Result
from pfseg.metrics.confusion import scores
from pfseg.reporting.evaluation import to_html
from pfseg.reporting.table import csv_text
from pfseg.tracking.panels import save_confusion, save_panels, save_reliability
from pfseg.tracking.records import RecordWriter
from pfseg.tracking.samples import save_maps
from pfseg.weights.calibration import save_calibration
from pfseg.weights.checkpoint import load_meta

CLASS_COLUMNS = ("IoU", "precision", "recall", "F1")
_EXTREMES = ("worst", "best")  # of `ImageScores`


def run(settings: Evaluate, folder: Path, stop: Callable[[], bool]) -> Result:
    """Score a checkpoint in this rank; returns what becomes `result.json`, which rank 0 alone knows."""
    assert isinstance(settings.checkpoint, str)  # the command scores several one by one
    checkpoint = on_every_rank(Path(settings.checkpoint))
    if checkpoint.suffix != ".onnx":
        from pfseg.runtime import seed_everything

        seed_everything(settings.seed)
    stored = _stored_settings(checkpoint, settings)
    dataset = build_dataset(stored.dataset, settings.split)
    trained = restore_network(checkpoint, stored, settings.precision, fold=False)
    if trained.size:
        stored.dataset.eval_size = trained.size, trained.size
    evaluator = _build(settings, stored, dataset, trained)
    step, epoch = trained.meta.get("progress", {}).get("step", 0), trained.meta.get("epoch", 0)
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    write = partial(records.write, step=step, epoch=epoch) if records else None

    def show(done: int, total: int) -> None:
        if records:
            records.progress("evaluating", done, total, step=step, epoch=epoch)

    if write:
        names, counts = [info.name for info in dataset.classes], {"images_train": 0, "images_val": len(dataset)}
        write("start", steps=0, ranks=world_size(), device=trained.device, classes=names, **counts)
    try:
        found = evaluator.run(trained.network, show)
        warnings = evaluator.loader.pop_warnings()
    finally:
        evaluator.loader.close()
    parts = {"images": found.details, "scenes": found.scenes.details if found.scenes else None}
    _gather(parts | {"calibration": evaluator if isinstance(evaluator, CalibratingEvaluator) else None}, folder)
    if not write:
        return {"status": "done"}
    for warning in warnings:
        write("message", level="warning", text=warning)
    used = {key: getattr(settings, key) for key in ("split", "score", "overlap", "scales", "flips", "exclude")}
    used |= {"eval_size": stored.dataset.eval_size or "whole", "contrast": stored.dataset.eval_contrast or "own"}
    results = {"checkpoint": settings.checkpoint, "step": step, **used}
    if isinstance(evaluator, CalibratingEvaluator):
        calibrated = calibrate(evaluator.kept)
        results["calibration"] = calibrated.dump()
        save_reliability(folder / "reliability.png", calibrated.before, calibrated.after)
        kept = save_calibration(checkpoint, {"split": settings.split, **results["calibration"]})
        write("message", level="info", text=_calibration_text(calibrated, kept))
    return _conclude(folder, found, evaluator, dataset.classes, results, write)


def _conclude(
    folder: Path,
    found: Evaluation,
    evaluator: Evaluator,
    classes: Sequence[ClassInfo],
    results: dict[str, Any],
    write: Callable[..., None],
) -> Result:
    """Write files and records of the scores; `results` is what `results.json` says of the evaluation itself."""
    exclude, pictures = results["exclude"], _pictures(found, evaluator)
    result, scenes = _scores(found, classes, exclude), {}
    results |= _write_files(folder, found, result, classes, pictures)
    if found.scenes:
        scenes = _scores(found.scenes, classes, exclude)
        shown_scenes = _pictures(found.scenes, evaluator)
        results["scenes"] = _write_files(folder / "scenes", found.scenes, scenes, classes, shown_scenes)
    results = plain(results)
    write_atomic(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
    write_atomic(folder / "results.html", to_html(folder, results, classes))
    extremes = list({panel.name: panel for kind in _EXTREMES for panel in pictures[kind]}.values())
    write(
        "val",
        **{f"val/{key}": value for key, value in result.items()},
        **{f"val/scenes_{key}": value for key, value in scenes.items() if "/" not in key},
        exclude=exclude,
        panels="samples.png" if found.panels else None,
        samples=save_maps(folder, results["step"], extremes, [None] * len(extremes)) if extremes else [],
        best=False,
    )
    write("confusion", confusion=found.confusion.tolist())
    write("message", level="info", text=f"page: {shown(folder / 'results.html')}")
    write("end", status="done")
    return {"status": "done", "images": found.images, **result}


def _calibration_text(found: Calibrated, file: Path) -> str:
    scores = (
        f"{name} {before:.3g} -> {after:.3g}{unit}"
        for name, before, after, unit in (
            ("ECE", found.before.ece, found.after.ece, " %"),
            ("NLL", found.before.nll, found.after.nll, ""),
            ("Brier", found.before.brier, found.after.brier, ""),
        )
    )
    return (
        f"temperature {found.temperature:.3g}, fitted on {found.fitted_on} images; on {found.measured_on} others "
        f"{', '.join(scores)}; kept in {shown(file)}, which pfseg predict follows"
    )


def _stored_settings(checkpoint: Path, settings: Evaluate) -> Train:
    """The settings of the training with what the evaluation changes in them."""
    changes = settings.dataset.changes()
    stored = training_settings(checkpoint, changes, trust=True)
    if settings.batch_size is not None:
        stored.batch_size = settings.batch_size
    if settings.eval_size is not None:
        stored.dataset.eval_size = None if settings.eval_size == "whole" else settings.eval_size
    if settings.contrast is not None:
        stored.dataset.eval_contrast = None if settings.contrast == "own" else settings.contrast
    stored.trainer.num_samples = settings.num_samples
    follow_record(stored.dataset, load_meta(checkpoint).get("input"), changes)
    return stored


def _build(settings: Evaluate, stored: Train, dataset: SegmentationDataset, model: Trained) -> Evaluator:
    names = [info.name for info in dataset.classes]
    options: dict[str, Any] = {
        "boundary": settings.boundary,
        "details": partial(ImageScores, names, settings.exclude, settings.num_samples),
    }
    views = {"overlap": settings.overlap, "scales": settings.scales, "flips": settings.flips}
    kind: type[Evaluator] = Evaluator
    if settings.score != "patches":
        root = stored.dataset.root
        places = scene_places(dataset, settings.split, Path(root) if root else None)
        loader = partial(EvalLoader, order=scene_order(places, rank(), world_size()))
        kind, options = SceneEvaluator, options | views
        options |= {"loader": loader, "places": places, "patches": settings.score == "both"}
    elif settings.calibrate:
        kind = CalibratingEvaluator
    elif views != {"overlap": 0, "scales": [1], "flips": "none"}:
        kind, options = BlendingEvaluator, options | views
    evaluator: Evaluator = build_evaluator(stored, dataset, model, kind, **options)
    return evaluator


def _gather(parts: Mapping[str, ImageScores | CalibratingEvaluator | None], folder: Path) -> None:
    """Bring what each rank knows of single images to rank 0, through the folder that all ranks share."""
    if world_size() == 1:
        return
    for kind, details in parts.items():
        if rank() and details:
            details.save(folder / f"{kind}-rank{rank()}.npz")
    sum_ranks(np.zeros(1))  # waits for all ranks
    for kind, details in parts.items():
        for other in range(1, world_size()):
            if rank() == 0 and details:
                path = folder / f"{kind}-rank{other}.npz"
                details.merge(path)
                path.unlink()


def _scores(found: Evaluation, classes: Sequence[ClassInfo], exclude: Sequence[str]) -> dict[str, float]:
    names = [info.name for info in classes]
    boundary = found.boundary.scores(names, exclude) if found.boundary else {}
    return scores(found.confusion, names, exclude) | boundary


def _pictures(found: Evaluation, evaluator: Evaluator) -> dict[str, list[Panel]]:
    """The first images, and the worst and the best; all in three bands."""
    pictures = {"samples": found.panels}
    for kind in _EXTREMES:
        pictures[kind] = [panel for _, panel in getattr(found.details, kind)] if found.details else []
    return {kind: evaluator.shown(panels) for kind, panels in pictures.items()}


def _write_files(
    folder: Path,
    found: Evaluation,
    result: dict[str, float],
    classes: Sequence[ClassInfo],
    pictures: Mapping[str, Sequence[Panel]],
) -> dict[str, object]:
    """Write tables and pictures; returns what `results.json` says about them."""
    names = [info.name for info in classes]
    pixels, matrix = found.confusion.sum(axis=1), found.confusion.tolist()
    rows = [
        [name, int(count), *(result[f"{column}/{name}"] for column in CLASS_COLUMNS)]
        for name, count in zip(names, pixels, strict=True)
    ]
    truths = [[name, *row] for name, row in zip(names, matrix, strict=True)]
    write_atomic(folder / "classes.csv", csv_text(["class", "pixels", *CLASS_COLUMNS], rows))
    write_atomic(folder / "confusion.csv", csv_text(["truth \\ prediction", *names], truths))
    if found.details:
        write_atomic(folder / "images.csv", csv_text(["image", "mIoU", "OA"], sorted(found.details.rows)))
    save_confusion(folder / "confusion.png", found.confusion, names)
    scored = {row.name: f"{row.name}, mIoU {row.miou:.1f}" for row in found.details.rows} if found.details else {}
    for kind, panels in pictures.items():
        if panels:
            titled = [panel._replace(name=scored[panel.name]) for panel in panels] if kind in _EXTREMES else panels
            save_panels(folder / f"{kind}.png", titled, classes)
    return {"images": found.images, **result, "classes": names, "confusion": matrix}
