"""Training in every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pfseg import __version__, build_data
from pfseg.build import build_evaluator, build_model, load_initial
from pfseg.config.schema import Train
from pfseg.config.stored import check_fits, training_settings
from pfseg.config.targets import instantiate
from pfseg.data.base import SegmentationDataset, find_overlap
from pfseg.data.census import count_masks
from pfseg.data.whole_scenes import SceneDataset
from pfseg.engine import nccl
from pfseg.engine.checkpointing import checkpoint_segments
from pfseg.engine.cost import count
from pfseg.engine.hooks import standard_hooks
from pfseg.engine.optimizer import build_optimizer, scale_lr
from pfseg.engine.range_test import RangeTest
from pfseg.engine.ranks import on_every_rank
from pfseg.engine.schedule import make_schedule
from pfseg.engine.trainer import Hook, Trainer, total_steps
from pfseg.files import write_atomic
from pfseg.launch.worker import Result
from pfseg.ops import kernels
from pfseg.runtime import jt, memory_advice, rank, seed_everything, world_size
from pfseg.tracking.records import RecordWriter


def run(settings: Train, folder: Path, stop: Callable[[], bool]) -> Result:
    """Train in this rank; returns what becomes `result.json`."""
    seed_everything(settings.seed)
    kernels.set_precision(settings.precision)
    kernels.set_deterministic(settings.trainer.deterministic)
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    train_set, val_set = _data_sets(settings, records)
    model = build_model(settings.model, train_set.num_classes, settings.dataset.num_bands)
    if world_size() > 1:
        model.mpi_param_broadcast()
    if settings.trainer.checkpointing:
        checkpoint_segments(model)
    workers = build_data.loader_workers(settings)
    loader = build_data.build_loader(settings, train_set, rank=rank(), world_size=world_size(), workers=workers)
    evaluator = build_evaluator(settings, val_set, model)
    steps_per_epoch = loader.batches_per_epoch // settings.trainer.accumulate
    base_lr = scale_lr(settings.optimizer, _global_batch(settings))
    total = total_steps(settings.trainer, steps_per_epoch)
    given = build_data.input_record(settings.dataset, train_set)
    if records:
        write_atomic(folder / "input.json", json.dumps(given, indent=1))
    finders: list[Hook] = [RangeTest()] if settings.schedule.name == "range_test" else []
    trainer = Trainer(
        settings=settings.trainer,
        model=model,
        loss=instantiate(settings.loss),
        optimizer=build_optimizer(settings.optimizer, model),
        lr=make_schedule(settings.schedule, base_lr=base_lr, total_steps=total, steps_per_epoch=steps_per_epoch),
        loader=loader,
        hooks=standard_hooks(evaluator, train_set.classes, stop) + finders,
        folder=folder,
        records=records,
        seed=settings.seed,
        meta={"config": settings.dump(), "input": given, "pfseg": __version__, "jittor": jt.__version__},
    )
    if settings.resume:
        last = on_every_rank(folder / "checkpoints" / "last.safetensors")
        check_fits(last, training_settings(last, trust=True), settings)
        trainer.restore(last)
        if records:
            records.drop_after(trainer.state.step)
    else:
        _say(records, load_initial(model, settings.model))
    if records:
        _announce(records, settings, trainer, train_set, len(val_set), base_lr)
    if isinstance(train_set, SceneDataset):
        _say(records, train_set.describe())
    if world_size() > 1 and jt.flags.use_cuda:
        _say(records, f"gradients are averaged by {nccl.way().text}")
    try:
        with memory_advice("lower batch_size (with trainer.accumulate for the same updates) or dataset.crop_size"):
            return trainer.run()
    finally:
        loader.close()
        evaluator.loader.close()


def _say(records: RecordWriter | None, text: str, level: str = "info") -> None:
    if records:
        records.write("message", step=0, epoch=0, level=level, text=text)


def _global_batch(settings: Train) -> int:
    return settings.batch_size * settings.trainer.accumulate * world_size()


def _data_sets(settings: Train, records: RecordWriter | None) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The splits to train and to validate on; what is measured on the first is filled in."""

    def show(done: int, total: int) -> None:
        if records:
            records.progress("measuring images", done, total, step=0, epoch=0)

    data = settings.dataset
    build_data.share_stretch(data, show)
    train_set, val_set = build_data.build_dataset(data, "train"), build_data.build_dataset(data, "val")
    if records and (overlap := find_overlap(train_set, val_set)):
        train_set.warnings.append(overlap)
    build_data.measure_colours(data, train_set, show)
    build_data.settle_class_weights(settings.loss, data, train_set, show)
    return train_set, val_set


def _announce(
    records: RecordWriter,
    settings: Train,
    trainer: Trainer,
    train_set: SegmentationDataset,
    images_val: int,
    base_lr: float,
) -> None:
    """Write what the run begins with, and what its masks hold."""
    data = settings.dataset
    cost = count(trainer.model, (1, data.num_bands, *data.crop_size))[1]
    records.write(
        "start",
        step=trainer.state.step,
        epoch=trainer.epoch,
        steps=trainer.total_steps,
        steps_per_epoch=trainer.steps_per_epoch,
        batch_size=settings.batch_size,
        global_batch=_global_batch(settings),
        base_lr=base_lr,
        ranks=world_size(),
        device="cuda" if jt.flags.use_cuda else "cpu",
        classes=[info.name for info in train_set.classes],
        images_train=len(train_set),
        images_val=images_val,
        parameters=cost.parameters,
        macs=cost.macs,
    )
    if settings.resume:
        return
    census = count_masks(train_set, Path(data.root) if data.root else None, "train")
    pixels, images, ignored = census.shares()
    table = [{"name": info.name, "color": list(info.color)} for info in census.classes]
    shares = {"pixels": pixels.tolist(), "images": images.tolist(), "ignored": ignored}
    records.write("masks", step=0, epoch=0, classes=table, masks=census.masks, **shares)
    for text in census.warnings():
        _say(records, text, "warning")
