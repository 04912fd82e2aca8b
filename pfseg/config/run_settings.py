"""Settings of the groups `trainer`, `optimizer`, `schedule`, `logger` and `launch`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from annotated_types import Gt, Lt

from pfseg.config import types as t
from pfseg.config.settings import KINDS, Settings, Several, setting


class TrainerSettings(Settings):
    """How long to train, and what happens around the steps."""

    max_epochs: t.Count | None = setting("epochs to train; the run ends with the first of max_epochs and max_steps")
    max_steps: t.Count | None = setting("steps (optimizer updates) to train")
    log_every: t.Count = setting("steps between logged rows")
    val_every: t.Count | None = setting("epochs between validations; the last step has one too; null: no validation")
    accumulate: t.Count = setting("batches per step")
    clip_grad: t.Positive | None = setting("largest norm of the gradient; null: unlimited")
    freeze_bn: bool = setting("whether BatchNorm keeps its loaded statistics")
    freeze_backbone: t.Natural = setting("epochs at the start in which only the head learns")
    overfit: bool = setting("whether every step trains on the batch of the first, to see that the loss goes to 0")
    sync_bn: bool = setting("whether BatchNorm takes its statistics over all ranks")
    ema: t.Decay | None = setting("decay of the averaged weights that are validated and saved; null: none")
    bn_batches: t.Natural = setting("batches that BatchNorm's statistics are re-estimated on before each validation")
    early_stop: t.Count | None = setting("validations without a better mIoU after which the run ends; null: never")
    num_samples: t.Natural = setting("images in the panels of each validation")
    workers: t.Workers = setting("loading processes per rank; auto: by the number of cores")
    save_every: t.Count | None = setting("steps between checkpoints, besides the one after each epoch")
    max_time: t.Positive | None = setting("minutes after which the run saves and ends; null: unlimited")
    deterministic: bool = setting("whether a GPU repeats a run to the last bit, by slower convolutions")
    checkpointing: bool = setting("whether the backward pass computes the backbone's maps again, which saves memory")
    log_grad_norm: bool = setting("whether to log the norm of the gradient, of all and of each part of the network")


class Optimizer(Settings):
    """What every optimizer has."""

    lr: t.Positive = setting("learning rate")
    scale_lr: Literal["none", "linear", "sqrt"] = setting("how lr grows with global batch / reference_batch")
    reference_batch: t.Count = setting("images per step that lr is meant for")
    weight_decay: t.NonNegative = setting("weight decay")
    decay_norms: bool = setting("whether weight_decay also applies to biases and to the weights of normalisation")
    lr_factors: dict[str, t.Positive] = setting(
        "factors of the learning rate by part of the network, such as {head: 10, layer1: 0.1}"
    )


class Sgd(Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = setting("kind of the optimizer")
    momentum: t.Decay = setting("momentum")
    nesterov: bool = setting("whether the momentum is Nesterov's")


class Adam(Optimizer):
    """Adam, and AdamW, which decays weights apart from the gradient."""

    name: Literal["adam", "adamw"] = setting("kind of the optimizer")
    betas: tuple[t.Decay, t.Decay] = setting("decay of the averages of the gradient and of its square")
    eps: t.Positive = setting("term added to the denominator")


OptimizerSettings: TypeAlias = Annotated[Sgd | Adam, KINDS]


class Schedule(Settings):
    """What every schedule has: a linear warm-up, then its own curve."""

    per: Literal["step", "epoch"] = setting("whether the rate changes with each step or each epoch")
    warmup_steps: t.Natural = setting("steps of the warm-up")
    warmup_start: t.Share = setting("fraction of lr at the first step of the warm-up")


class Constant(Schedule):
    """The same rate from the warm-up to the end."""

    name: Literal["constant"] = setting("kind of the schedule")


class PolyCurve(Schedule):
    """lr * (1 - done)^power."""

    power: t.Positive = setting("exponent")
    legacy: bool = setting("whether the rate runs one epoch ahead, as in the published runs")


class Poly(PolyCurve):
    """lr * (1 - done)^power."""

    name: Literal["poly"] = setting("kind of the schedule")


class SclPoly(PolyCurve):
    """Poly until `relax_epoch`, then lr * rescale * (1 - done since then)^repower."""

    name: Literal["scl_poly"] = setting("kind of the schedule")
    relax_epoch: t.Natural = setting("epoch at which the second curve starts")
    rescale: t.Positive = setting("fraction of lr that the second curve starts at")
    repower: t.Positive = setting("exponent of the second curve")


class Cosine(Schedule):
    """Half a cosine."""

    name: Literal["cosine"] = setting("kind of the schedule")
    end: t.Share = setting("fraction of lr at the end")


class RangeTest(Schedule):
    """Rises exponentially to lr, to find a good one; the run ends where the loss grows, and draws `lr_find.html`."""

    name: Literal["range_test"] = setting("kind of the schedule")
    start: Annotated[float, Gt(0), Lt(1)] = setting("fraction of lr at the first step")


ScheduleSettings: TypeAlias = Annotated[Poly | SclPoly | Cosine | Constant | RangeTest, KINDS]


class Wandb(Settings):
    """Weights & Biases."""

    project: str = setting("project that runs are logged to")
    entity: str | None = setting("user or team; null: the key's own")
    mode: Literal["auto", "online", "offline"] = setting("auto: online with a key and a network, otherwise offline")
    tags: list[str] = setting("tags of the run")
    checkpoints: list[Literal["last", "best"]] = setting("checkpoints that are uploaded as artifacts, by these aliases")
    registry: str | None = setting(
        "collection of a registry that the best checkpoint is linked to, wandb-registry-model/<name>; null: none"
    )
    alerts: list[Literal["failed", "early_stop", "finished"]] = setting("ends of a run that W&B alerts its user to")
    fork: bool = setting("whether a run that is resumed with other settings becomes a fork of its W&B run")


class TensorBoard(Settings):
    """TensorBoard files in tensorboard/ of the run folder."""


class Loggers(Several):
    """Where a run is shown besides the terminal and its own files."""

    wandb: Wandb = None  # type: ignore[assignment]
    tensorboard: TensorBoard = None  # type: ignore[assignment]


class Inline(Settings):
    """In this very process, with one rank: for debuggers."""

    name: Literal["inline"] = setting("kind of the launch")


class Launch(Settings):
    """What every launch of ranks has."""

    timeout: t.Positive | None = setting("seconds without progress after which the job counts as hung; null: unlimited")
    interface: str | None = setting("network interface or subnet between hosts, eth0 or 10.0.0.0/24; null: any")


class Mpi(Launch):
    """mpirun, on this host or several; it starts a process per rank, also for one."""

    name: Literal["mpi"] = setting("kind of the launch")
    hosts: list[str] | None = setting(
        "ranks by host over ssh, this host first: [node1:4,node2:4]; plain names: one rank per GPU; null: this host"
    )


class Slurm(Launch):
    """A job script for SLURM, whose job starts the same command with launch=mpi."""

    name: Literal["slurm"] = setting("kind of the launch")
    nodes: t.Count = setting("number of nodes; gpus is the number of GPUs of each, ranks that of all ranks")
    time: t.Count | None = setting("minutes; two minutes before their end the job saves and leaves")
    partition: str | None = setting("partition")
    account: str | None = setting("account")
    cpus_per_task: t.Count | None = setting("cores per rank")
    memory: str | None = setting("memory per node, such as 64G")
    options: list[str] = setting("further options of sbatch, such as [--constraint=a100,--mail-type=END]")
    setup: list[str] = setting("shell lines that come first, such as [module load cuda/12.4]")
    submit: bool = setting("whether to hand the script to sbatch")


LaunchSettings: TypeAlias = Annotated[Mpi | Slurm | Inline, KINDS]
