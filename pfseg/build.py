"""Composition root: from a configuration to objects. The only module that sees them all.

`train` and `evaluate` run in the driver: they choose where telemetry goes and start the job. `run_worker` runs in
every rank and does the job. Nothing below this module receives a configuration: constructors take plain arguments.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from pfseg import __version__
from pfseg.checks import pair
from pfseg.config import compose
from pfseg.data.archive import find_in_folders
from pfseg.data.base import Scene, SegmentationDataset
from pfseg.data.folder import FolderDataset
from pfseg.data.loader import EvalLoader, TrainLoader
from pfseg.data.overlap import find_overlap
from pfseg.data.whole_scenes import SceneDataset
from pfseg.errors import ConfigError, PfsegError
from pfseg.launch import run_job
from pfseg.slurm import submit, write_script
from pfseg.tracking.console import RunConsole
from pfseg.tracking.records import RecordWriter, Sink, plain, shown, write_atomic
from pfseg.validate import check_fits

Config = dict[str, Any]


# In the driver


def train(config: Config) -> float:
    """Train as configured; returns the best validation mIoU in percent, NaN where SLURM will start the job.

    Raises:
        JobError: the job failed or was stopped.
    """
    if config["launch"]["name"] == "slurm":
        return _prepare_submission(config)
    return float(_drive(config)["best/mIoU"])


def evaluate(config: Config) -> float:
    """Score a checkpoint as configured; returns the mIoU in percent and leaves `results.json` in the run folder.

    Raises:
        JobError: the job failed or was stopped.
        CheckpointError: no checkpoint, or one that doesn't fit.
    """
    if config["launch"]["name"] == "slurm":
        return _prepare_submission(config)
    miou = _drive(config)["mIoU"]
    return math.nan if miou is None else float(miou)  # JSON has no NaN


def _prepare_submission(config: Config) -> float:
    hydra = HydraConfig.get()
    console = RunConsole()
    script = write_script(Path(hydra.runtime.output_dir), config, hydra.overrides.task)
    console.message(submit(script) if config["launch"]["submit"] else f"submit it with: sbatch {shown(script)}")
    return math.nan


def _drive(config: Config) -> Config:
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = RunConsole(folder)
    sinks: list[Sink] = [console]
    console.show_config(config)
    wandb = None
    if config["logger"]["name"] == "wandb":
        from pfseg.tracking.wandb import WandbLogger

        hydra = HydraConfig.get()
        group = hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else None
        wandb = WandbLogger(folder, config, console, group=group)
        sinks.append(wandb)
    code = 1
    try:
        result = run_job(folder, config, sinks=sinks)
        code = 0
        return result
    except PfsegError as error:
        code = error.exit_code
        raise
    finally:
        if wandb:
            wandb.finish(code)
        console.close()


# In every rank


def run_worker(config: Config, folder: Path, stop: Callable[[], bool]) -> Config:
    """Do the job that `config` describes in this rank; what it returns becomes `result.json`."""
    return _evaluate(config, folder) if config["job"] == "evaluate" else _train(config, folder, stop)


def create_model(name: str, *, num_classes: int, variant: str = "pytorch", pretrained: str | Path | None = None) -> Any:
    """Build a network of conf/model by its name.

    Args:
        name: `pfnet_r18`, `pfnet_r50`, `pfnet_r101`, `pfnet_r2n101` or another file of conf/model.
        num_classes: K.
        variant: `pytorch` or `jittor`, see `pfseg.models.pfnet.VARIANTS`.
        pretrained: backbone weights (.pth, .pkl, .safetensors).

    Returns:
        A Jittor module that maps (N, 3, H, W) float32 to `SegOutput`.

    Raises:
        ConfigError: unknown name.
        CheckpointError: unusable `pretrained`.
    """
    composed = compose("train", [f"model={name}", f"model.variant={variant}"]).model
    config = cast(Config, OmegaConf.to_container(composed))
    model = build_model(config, num_classes)
    if pretrained is not None:
        load_initial(model, config | {"pretrained": pretrained})
    return model


def instantiate(config: Config, **given: Any) -> Any:
    """Call the class that `_target_` names with the other keys and `given`; nested `_target_`s first.

    Raises:
        ConfigError: the class does not exist, or its constructor refuses a value.
    """
    target = config["_target_"]
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"_target_={target} can't be imported ({error}); give package.module.Class") from error
    arguments = {
        key: instantiate(value) if isinstance(value, dict) and "_target_" in value else value
        for key, value in (config | given).items()
        if key != "_target_"
    }
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{target} can't be built: {error}") from error


def build_dataset(config: Config, split: str) -> SegmentationDataset:
    """Build a split of the data set that `config` (the group `dataset`) describes."""
    module, _, name = config["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    root = parameters.get("root")
    if root is not None and root.default is root.empty and config["root"] is None:
        raise ConfigError(f"dataset.root is null, but {name} needs it: add dataset.root=<folder of the data set>")
    if config.get("source") == "scenes":
        return _build_scenes(config, split)
    arguments = {key: value for key, value in config.items() if key == "_target_" or key in parameters}
    dataset: SegmentationDataset = instantiate(arguments, split=split)
    return dataset


def _build_scenes(config: Config, split: str) -> SceneDataset:
    """Build a split whose samples are windows of whole scenes, without patches."""
    keys = ("classes", "ignore", "bands", "stretch", "on_error")
    sizes = {key: value and pair(value) for key, value in config["prepare"].items() if key in ("size", "stride")}
    shared = {key: config[key] for key in keys} | sizes
    scenes = _find_scenes(config, split)
    dataset = SceneDataset(split=split, scenes=scenes, **shared)
    dataset.warnings += getattr(scenes, "faults", [])  # a finder of the user's own may return a plain list
    return dataset


def _find_scenes(config: Config, split: str) -> list[Scene]:
    root = Path(config["root"])
    if config["prepare"]["scenes"]:
        return cast(list[Scene], instantiate(config["prepare"]["scenes"], src=root))
    patches = {**config, "source": "patches"}
    splits = config["splits"] or {split: split}
    chosen = {key: value for key, value in splits.items() if key == split or isinstance(splits.get("val"), float)}

    def build(name: str) -> FolderDataset:
        return cast(FolderDataset, build_dataset(patches, name))

    return find_in_folders(root, chosen, build, config["images"], config["mask_suffix"])


def build_model(config: Config, num_classes: int) -> Any:
    """Build the network that `config` (the group `model`) describes."""
    arguments = {
        key: value for key, value in config.items() if key not in ("name", "pretrained", "init", "num_classes")
    }
    return instantiate(arguments, num_classes=num_classes)


def load_initial(model: Any, config: Config) -> str:
    """Load the weights that `config` (the group `model`) starts from; returns what was loaded and what was not.

    Raises:
        CheckpointError: unreadable, or of another network.
    """
    from pfseg.engine.initial import load_backbone, load_network
    from pfseg.engine.share import on_every_rank

    if config["init"]:
        return load_network(model, on_every_rank(Path(config["init"])))
    if config["pretrained"]:
        module, _, name = config["backbone"]["_target_"].rpartition(".")
        rename = getattr(getattr(import_module(module), name), "rename_pretrained", None)
        return load_backbone(model, on_every_rank(Path(config["pretrained"])), rename)
    return "training from random weights; model.pretrained=<file> starts from those of a trained backbone"


def build_loader(config: Config, dataset: SegmentationDataset, **process: int) -> TrainLoader:
    """Build what draws, augments and batches training samples; `process`: rank, world_size and workers."""
    data = config["dataset"]
    shared: Config = {key: data[key] for key in ("mean", "std", "ignore_index", "resolution", "class_uniform")}
    return TrainLoader(
        dataset=dataset,
        augment=instantiate(config["augment"]),
        crop_size=tuple(data["crop_size"]),
        batch_size=config["batch_size"],
        seed=config["seed"],
        edge_rule=data["edge"]["rule"],
        edge_thickness=data["edge"]["thickness"],
        multiple=config["trainer"]["accumulate"],
        **shared | process,
    )


def _loader_workers(config: Config) -> int:
    wanted = config.get("trainer", {}).get("workers", "auto")
    return max(1, min(4, int(os.environ.get("OMP_NUM_THREADS", "2")))) if wanted == "auto" else int(wanted)


def _build_evaluator(config: Config, dataset: SegmentationDataset, stride: int, *, boundary: bool = False) -> Any:
    from pfseg.engine.evaluator import Evaluator
    from pfseg.runtime import rank, world_size

    data = config["dataset"]
    return Evaluator(
        EvalLoader(dataset=dataset, rank=rank(), world_size=world_size(), workers=1 if _loader_workers(config) else 0),
        num_classes=dataset.num_classes,
        mean=data["mean"],
        std=data["std"],
        window=tuple(data["eval_size"]) if data["eval_size"] else None,
        stride=stride,
        batch_size=config["batch_size"],
        resolution=data["resolution"],
        ignore_index=data["ignore_index"],
        num_panels=config["trainer"]["num_samples"],
        boundary=boundary,
    )


def _train(config: Config, folder: Path, stop: Callable[[], bool]) -> Config:
    from pfseg.engine import state
    from pfseg.engine.checkpoint import load_checkpoint
    from pfseg.engine.schedule import make_schedule
    from pfseg.engine.share import on_every_rank
    from pfseg.engine.trainer import Plan, Trainer
    from pfseg.runtime import jt, rank, seed_everything, world_size

    seed_everything(config["seed"])
    data, options = config["dataset"], dict(config["trainer"])
    train_set, val_set = build_dataset(data, "train"), build_dataset(data, "val")
    if rank() == 0 and (overlap := find_overlap(train_set, val_set)):
        train_set.warnings.append(overlap)
    model = build_model(config["model"], train_set.num_classes)
    if world_size() > 1:
        model.mpi_param_broadcast()
    optimizer_options = dict(config["optimizer"])
    optimizer = state.build_optimizer(optimizer_options.pop("name"), model, **optimizer_options)
    loader = build_loader(config, train_set, rank=rank(), world_size=world_size(), workers=_loader_workers(config))
    evaluator = _build_evaluator(config, val_set, model.output_stride)
    plan = Plan(**{key: value for key, value in options.items() if key not in ("workers", "num_samples")})
    steps_per_epoch = loader.batches_per_epoch // plan.accumulate
    schedule = dict(config["schedule"])
    lr = make_schedule(
        schedule.pop("name"),
        base_lr=optimizer_options["lr"],
        total_steps=plan.total_steps(steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        **schedule,
    )
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    trainer = Trainer(
        model=model,
        loss=instantiate(config["loss"]),
        optimizer=optimizer,
        lr=lr,
        loader=loader,
        evaluator=evaluator,
        plan=plan,
        classes=train_set.classes,
        folder=folder,
        records=records,
        seed=config["seed"],
        meta={"config": config, "pfseg": __version__, "jittor": jt.__version__},
        stop=stop,
    )
    if config["resume"]:
        last = on_every_rank(folder / "checkpoints" / "last.safetensors")
        check_fits(last, load_checkpoint(last)[1]["config"], config)
        trainer.restore(last)
        if records:
            records.drop_after(trainer.progress.step)
    else:
        report = load_initial(model, config["model"])
        if records:
            records.write("message", step=0, epoch=0, level="info", text=report)
    if records:
        records.write(
            "start",
            step=trainer.progress.step,
            epoch=trainer.epoch,
            steps=trainer.total_steps,
            steps_per_epoch=steps_per_epoch,
            global_batch=config["batch_size"] * plan.accumulate * world_size(),
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


def _evaluate(config: Config, folder: Path) -> Config:
    from pfseg.engine import state
    from pfseg.engine.checkpoint import SECTIONS, load_checkpoint
    from pfseg.engine.share import on_every_rank
    from pfseg.metrics import scores
    from pfseg.runtime import jt, rank, seed_everything, world_size
    from pfseg.tracking.panels import save_panels

    seed_everything(config["seed"])
    path = on_every_rank(Path(config["checkpoint"]))
    arrays, meta = load_checkpoint(path)
    stored = meta["config"]
    if config["dataset"]["root"] is not None:
        stored["dataset"]["root"] = config["dataset"]["root"]
    if config["batch_size"] is not None:
        stored["batch_size"] = config["batch_size"]
    if config["eval_size"] is not None:
        stored["dataset"]["eval_size"] = config["eval_size"]
    dataset = build_dataset(stored["dataset"], config["split"])
    model = build_model(stored["model"], dataset.num_classes)
    state.load_model(model, {k: v for k, v in arrays.items() if not k.startswith(SECTIONS)}, str(path))
    model.eval()
    evaluator = _build_evaluator(stored, dataset, model.output_stride, boundary=config["boundary"])
    names = [c.name for c in dataset.classes]
    records = RecordWriter(folder / "metrics.jsonl") if rank() == 0 else None
    step = meta["progress"]["step"]

    def write(event: str, **fields: Any) -> None:
        if records:
            records.write(event, step=step, epoch=meta["epoch"], **fields)

    device = "cuda" if jt.flags.use_cuda else "cpu"
    write("start", steps=0, ranks=world_size(), device=device, classes=names, images_train=0, images_val=len(dataset))
    try:
        found = evaluator.run(model.predict, lambda done, n: write("progress", text="evaluating", done=done, total=n))
        for warning in evaluator.loader.pop_warnings():
            write("message", level="warning", text=warning)
    finally:
        evaluator.loader.close()
    result = scores(found.confusion, names) | (found.boundary.scores(names) if found.boundary else {})
    if rank() == 0:
        if found.panels:
            save_panels(folder / "samples.png", found.panels, dataset.classes)
        details = {"checkpoint": str(path), "step": step, "split": config["split"], "images": found.images, **result}
        details["classes"], details["confusion"] = names, found.confusion.tolist()
        write_atomic(folder / "results.json", json.dumps(plain(details), indent=1, allow_nan=False))
    write(
        "val",
        **{f"val/{key}": value for key, value in result.items()},
        panels="samples.png" if found.panels else None,
        best=False,
    )
    write("end", status="done")
    return {"status": "done", "images": found.images, **result}
