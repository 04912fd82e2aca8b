"""Training in every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pfseg import __version__, build, build_data
from pfseg.config.schema import Train
from pfseg.config.stored import check_fits, training_settings
from pfseg.config.targets import instantiate
from pfseg.data.base import find_overlap
from pfseg.data.census import Census, count_masks
from pfseg.data.whole_scenes import SceneDataset
from pfseg.engine import nccl
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
    data, trainer_settings = settings.dataset, settings.trainer
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None

    def show(done: int, total: int) -> None:
        if records:
            records.progress("measuring images", done, total, step=0, epoch=0)

    def say(text: str) -> None:
        if records:
            records.write("message", step=0, epoch=0, level="info", text=text)

    build_data.share_stretch(data, show)
    train_set, val_set = build_data.build_dataset(data, "train"), build_data.build_dataset(data, "val")
    if rank() == 0 and (overlap := find_overlap(train_set, val_set)):
        train_set.warnings.append(overlap)
    build_data.measure_colours(data, train_set, show)
    build_data.settle_class_weights(settings.loss, data, train_set, show)
    model = build.build_model(settings.model, train_set.num_classes, data.num_bands)
    if world_size() > 1:
        model.mpi_param_broadcast()
    optimizer = build_optimizer(settings.optimizer, model)
    loader = build_data.build_loader(
        settings, train_set, rank=rank(), world_size=world_size(), workers=build_data.loader_workers(settings)
    )
    evaluator = build.build_evaluator(settings, val_set, model)
    steps_per_epoch = loader.batches_per_epoch // trainer_settings.accumulate
    global_batch = settings.batch_size * trainer_settings.accumulate * world_size()
    base_lr = scale_lr(settings.optimizer, global_batch)
    lr = make_schedule(
        settings.schedule,
        base_lr=base_lr,
        total_steps=total_steps(trainer_settings, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
    )
    given = build_data.input_record(data, train_set)
    if rank() == 0:
        write_atomic(folder / "input.json", json.dumps(given, indent=1))
    finders: list[Hook] = [RangeTest()] if settings.schedule.name == "range_test" else []
    trainer = Trainer(
        settings=trainer_settings,
        model=model,
        loss=instantiate(settings.loss),
        optimizer=optimizer,
        lr=lr,
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
        say(build.load_initial(model, settings.model))
    if records:
        cost = count(model, (1, data.num_bands, *data.crop_size))[1]
        records.write(
            "start",
            step=trainer.state.step,
            epoch=trainer.epoch,
            steps=trainer.total_steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=settings.batch_size,
            global_batch=global_batch,
            base_lr=base_lr,
            ranks=world_size(),
            device="cuda" if jt.flags.use_cuda else "cpu",
            classes=[c.name for c in train_set.classes],
            images_train=len(train_set),
            images_val=len(val_set),
            parameters=cost.parameters,
            macs=cost.macs,
        )
        if not settings.resume:
            _tell_masks(records, count_masks(train_set, Path(data.root) if data.root else None, "train"))
    if isinstance(train_set, SceneDataset):
        say(train_set.describe())
    if world_size() > 1 and jt.flags.use_cuda:
        say(f"gradients are averaged by {nccl.way().text}")
    try:
        with memory_advice("lower batch_size (with trainer.accumulate for the same updates) or dataset.crop_size"):
            return trainer.run()
    finally:
        loader.close()
        evaluator.loader.close()


def _tell_masks(records: RecordWriter, census: Census) -> None:
    pixels, images, ignored = census.shares()
    table = [{"name": info.name, "color": list(info.color)} for info in census.classes]
    shares = {"pixels": pixels.tolist(), "images": images.tolist(), "ignored": ignored}
    records.write("masks", step=0, epoch=0, classes=table, masks=census.masks, **shares)
    for text in census.warnings():
        records.write("message", step=0, epoch=0, level="warning", text=text)
