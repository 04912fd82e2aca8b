"""Training in every rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfseg import __version__
from pfseg.build import (
    build_dataset,
    build_evaluator,
    build_loader,
    build_model,
    instantiate,
    load_initial,
    loader_workers,
)
from pfseg.config.schema import Train
from pfseg.config.stored import check_fits, training_settings
from pfseg.data.overlap import find_overlap
from pfseg.data.whole_scenes import SceneDataset
from pfseg.engine import state
from pfseg.engine.schedule import make_schedule, scale_lr
from pfseg.engine.share import on_every_rank
from pfseg.engine.trainer import Plan, Trainer
from pfseg.runtime import jt, rank, seed_everything, world_size
from pfseg.tracking.records import RecordWriter


def run(settings: Train, folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Train in this rank; returns what becomes `result.json`."""
    seed_everything(settings.seed)
    data, options = settings.dataset, settings.trainer.values()
    train_set, val_set = build_dataset(data, "train"), build_dataset(data, "val")
    if rank() == 0 and (overlap := find_overlap(train_set, val_set)):
        train_set.warnings.append(overlap)
    model = build_model(settings.model, train_set.num_classes)
    if world_size() > 1:
        model.mpi_param_broadcast()
    optimizer_options = settings.optimizer.values()
    scaling, reference = (optimizer_options.pop(key) for key in ("scale_lr", "reference_batch"))
    optimizer = state.build_optimizer(optimizer_options.pop("name"), model, **optimizer_options)
    loader = build_loader(settings, train_set, rank=rank(), world_size=world_size(), workers=loader_workers(settings))
    evaluator = build_evaluator(settings, val_set, model)
    plan = Plan(**{key: value for key, value in options.items() if key not in ("workers", "num_samples")})
    steps_per_epoch = loader.batches_per_epoch // plan.accumulate
    global_batch = settings.batch_size * plan.accumulate * world_size()
    base_lr = scale_lr(optimizer_options["lr"], scaling, global_batch, reference)
    schedule = settings.schedule.values()
    lr = make_schedule(
        schedule.pop("name"),
        base_lr=base_lr,
        total_steps=plan.total_steps(steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        **schedule,
    )
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    trainer = Trainer(
        model=model,
        loss=instantiate(settings.loss),
        optimizer=optimizer,
        lr=lr,
        loader=loader,
        evaluator=evaluator,
        plan=plan,
        classes=train_set.classes,
        folder=folder,
        records=records,
        seed=settings.seed,
        meta={"config": settings.dump(), "pfseg": __version__, "jittor": jt.__version__},
        stop=stop,
    )
    if settings.resume:
        last = on_every_rank(folder / "checkpoints" / "last.safetensors")
        check_fits(last, training_settings(last, trust=True), settings)
        trainer.restore(last)
        if records:
            records.drop_after(trainer.progress.step)
    else:
        report = load_initial(model, settings.model)
        if records:
            records.write("message", step=0, epoch=0, level="info", text=report)
    if records:
        records.write(
            "start",
            step=trainer.progress.step,
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
        )
        if isinstance(train_set, SceneDataset):
            records.write("message", step=0, epoch=0, level="info", text=train_set.describe())
    try:
        return trainer.run()
    finally:
        loader.close()
        evaluator.loader.close()
