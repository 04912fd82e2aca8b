"""The settings of training and evaluation: each class is a group of conf/, each field documents one setting.

This is, with the modules beside it, the only declaration of a setting. `pfseg settings` prints it, and the
documentation is made from it.
"""

from __future__ import annotations

from typing import Literal

from pfseg.config import types as t
from pfseg.config.data_settings import AnyAugment, DatasetSettings
from pfseg.config.loss_settings import LossSettings
from pfseg.config.model_settings import ModelSettings
from pfseg.config.run_settings import LaunchSettings, Loggers, OptimizerSettings, ScheduleSettings, TrainerSettings
from pfseg.config.settings import CustomTarget, Settings, setting


class Ranks(Settings):
    """What runs in ranks."""

    gpus: t.Gpus = setting("auto: all GPUs; 0: the CPU; a number; or a list of positions such as [0,2]")
    ranks: t.Ranks = setting("number of processes that share the work; auto: one per GPU, or one on the CPU")
    precision: t.Precision = setting(
        "what the network computes in, on a CPU fp32 or bf16; losses, statistics and weights stay fp32"
    )


class Job(Ranks):
    """What training and evaluation have in common."""

    seed: t.Seed = setting("seed of everything random")
    logger: Loggers
    launch: LaunchSettings


class TrainBase(Job):
    """The settings of a training, which a preview takes too."""

    name: str = setting("first folder below outputs/")
    batch_size: t.Count = setting("images per rank and batch; the global batch is batch_size * ranks * accumulate")
    resume: str | None = setting("run folder to continue; all of its settings are taken over")
    pruner: CustomTarget | None = setting("Optuna pruner that ends bad trials early; see conf/hparams_search")
    trainer: TrainerSettings
    dataset: DatasetSettings
    model: ModelSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    augment: AnyAugment


class Train(TrainBase):
    """Train a network."""

    job: Literal["train"] = setting("the command")


class Application(Ranks):
    """How trained networks are applied to images."""

    checkpoint: str | list[str] = setting(
        "run folder (its best checkpoint), .safetensors or .onnx file; [a,b,c] compares several, or averages their maps"
    )
    trust: bool = setting("whether to run code that a checkpoint names and that isn't pfseg's own")
    overlap: t.Decay = setting("share of a window that the next one covers too; windows are blended smoothly")
    scales: t.Scales = setting("factors that images are resized by; probabilities are averaged")
    flips: t.Flips = setting("mirrored views that are averaged too: h (left-right), v, hv (both), d4 (8 symmetries)")
    contrast: t.OwnContrast | None = setting("standard deviation of grey levels; own: the image's; null: as trained")

    @property
    def checkpoints(self) -> list[str]:
        """All of them, also if it is one."""
        return [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint


class DataChanges(Settings, extra="allow"):
    """Settings of the data set that differ from those stored in the checkpoint."""

    def changes(self) -> dict[str, object]:
        """Those settings, as YAML holds them."""
        return {key: value for key, value in self.dump().items() if key != "root" or value is not None}


class EvaluateData(DataChanges):
    """Settings of the data set that differ from the training's; `dataset.root` above all."""

    root: str | None = setting("folder of the data set; null: as in training")


class Evaluate(Application, Job):
    """Score checkpoints."""

    job: Literal["evaluate"] = setting("the command")
    split: t.Split = setting("split of the data set to score on")
    score: Literal["patches", "scenes", "both"] = setting(
        "patches: each image by itself, overlaps counted as published; scenes: patches put together; both"
    )
    eval_size: t.Size | Literal["whole"] | None = setting("window in pixels; whole: whole image; null: as in training")
    exclude: list[str] = setting("classes that the means leave out; their pixels still count for the other classes")
    boundary: bool = setting("whether to compute the boundary F-score and the boundary IoU too")
    calibrate: bool = setting("whether to fit a temperature on every other image, which pfseg predict then follows")
    num_samples: t.Natural = setting("images in each picture: the first ones, the worst and the best by mIoU")
    batch_size: t.Count | None = setting("windows at a time, fewer where they are large; null: as in training")
    dataset: EvaluateData
