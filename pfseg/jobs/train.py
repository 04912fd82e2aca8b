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
from pfseg.config import schema
from pfseg.config.validate import check_fits
from pfseg.data.overlap import find_overlap
from pfseg.data.whole_scenes import SceneDataset
from pfseg.tracking.records import RecordWriter

Config = dict[str, Any]


def run(config: Config, folder: Path, stop: Callable[[], bool]) -> Config:
    """Train in this rank; returns what becomes `result.json`."""
    from pfseg.engine.hooks import standard_hooks
    from pfseg.engine.optimizer import build_optimizer, scale_lr
    from pfseg.engine.ranks import on_every_rank
    from pfseg.engine.schedule import make_schedule
    from pfseg.engine.trainer import Trainer, total_steps
    from pfseg.runtime import jt, rank, seed_everything, world_size
    from pfseg.weights.checkpoint import load_checkpoint

    seed_everything(config["seed"])
    data, settings = config["dataset"], schema.Trainer(**config["trainer"])
    train_set, val_set = build_dataset(data, "train"), build_dataset(data, "val")
    if rank() == 0 and (overlap := find_overlap(train_set, val_set)):
        train_set.warnings.append(overlap)
    model = build_model(config["model"], train_set.num_classes)
    if world_size() > 1:
        model.mpi_param_broadcast()
    optimizer_settings = (schema.Sgd if config["optimizer"]["name"] == "sgd" else schema.Adam)(**config["optimizer"])
    optimizer = build_optimizer(optimizer_settings, model)
    loader = build_loader(config, train_set, rank=rank(), world_size=world_size(), workers=loader_workers(config))
    evaluator = build_evaluator(config, val_set, model)
    steps_per_epoch = loader.batches_per_epoch // settings.accumulate
    global_batch = config["batch_size"] * settings.accumulate * world_size()
    base_lr = scale_lr(optimizer_settings, global_batch)
    kinds = {"poly": schema.Poly, "scl_poly": schema.SclPoly, "cosine": schema.Cosine, "constant": schema.Schedule}
    lr = make_schedule(
        kinds[config["schedule"]["name"]](**config["schedule"]),
        base_lr=base_lr,
        total_steps=total_steps(settings, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
    )
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    trainer = Trainer(
        settings=settings,
        model=model,
        loss=instantiate(config["loss"]),
        optimizer=optimizer,
        lr=lr,
        loader=loader,
        hooks=standard_hooks(settings, model=model, evaluator=evaluator, classes=train_set.classes, stop=stop),
        folder=folder,
        records=records,
        seed=config["seed"],
        meta={"config": config, "pfseg": __version__, "jittor": jt.__version__},
    )
    if config["resume"]:
        last = on_every_rank(folder / "checkpoints" / "last.safetensors")
        check_fits(last, load_checkpoint(last)[1]["config"], config)
        trainer.restore(last)
        if records:
            records.drop_after(trainer.state.step)
    else:
        report = load_initial(model, config["model"])
        if records:
            records.write("message", step=0, epoch=0, level="info", text=report)
    if records:
        records.write(
            "start",
            step=trainer.state.step,
            epoch=trainer.epoch,
            steps=trainer.total_steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=config["batch_size"],
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
