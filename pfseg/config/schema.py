"""The settings of training and evaluation: each class is a group of conf/, each field documents one setting.

This is the only declaration of a setting. `pfseg settings` prints it, and the documentation is made from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, Tag, model_serializer

from pfseg.config.settings import (
    CUSTOM,
    Bands,
    Contrast,
    Count,
    Decay,
    Flips,
    Gpus,
    Ignored,
    Natural,
    NonNegative,
    Percentiles,
    Positive,
    Range,
    Ranks,
    Seed,
    Settings,
    Share,
    Size,
    Split,
    Target,
    Variant,
    Workers,
    by_name,
    by_target,
    setting,
)


class Trainer(Settings):
    """How long to train, and what happens around the steps."""

    max_epochs: Count | None = setting("epochs to train; the run ends with the first of max_epochs and max_steps")
    max_steps: Count | None = setting("steps (optimizer updates) to train")
    log_every: Count = setting("steps between logged rows")
    val_every: Count = setting("epochs between validations; a run always ends with a validation")
    accumulate: Count = setting("batches per step")
    clip_grad: Positive | None = setting("largest norm of the gradient; null: unlimited")
    freeze_bn: bool = setting("whether BatchNorm keeps its loaded statistics")
    sync_bn: bool = setting("whether BatchNorm takes its statistics over all ranks")
    ema: Decay | None = setting("decay of the averaged weights that are validated and saved, such as 0.999; null: none")
    bn_batches: Natural = setting("batches that BatchNorm's statistics are re-estimated on before each validation")
    early_stop: Count | None = setting("validations without a better mIoU after which the run ends; null: never")
    num_samples: Natural = setting("images in the panels of each validation")
    workers: Workers = setting("loading processes per rank; auto: by the number of cores")
    save_every: Count | None = setting("steps between checkpoints, besides the one after each epoch")
    max_time: Positive | None = setting("minutes after which the run saves and ends; null: unlimited")
    log_grad_norm: bool = setting("whether to log the norm of the gradient, of all and of each part of the network")


class Edge(Settings):
    """Edge labels."""

    rule: Literal["class", "foreground"] = setting(
        "class: between any two classes; foreground: around class 0, as published"
    )
    thickness: Count = setting("thickness of the band in pixels")


class Dataset(Settings):
    """What every data set has."""

    target: str = Field(alias="_target_", description="class of the data set, as package.module.Class")
    name: str = setting("name of the data set, also part of the run folder's")
    root: str | None = setting("folder of the data set")
    classes: list[Any] = setting('class table in order: {name, color: "3C1098" or [r, g, b], id: value in the masks}')
    on_error: Literal["raise", "skip"] = setting("what a damaged file does: end the run, or be skipped and counted")
    mean: tuple[float, float, float] = setting("mean of the channels of images scaled to 0..1")
    std: tuple[Positive, Positive, Positive] = setting("standard deviation of the channels of images scaled to 0..1")
    ignore_index: Ignored = setting("label of pixels without a class")
    crop_size: Size = setting("training crop in pixels, or [height, width]")
    eval_size: Size | None = setting(
        "validation windows in pixels; null: whole images, about 2 GiB of memory per megapixel"
    )
    eval_contrast: Contrast | None = setting(
        "standard deviation, in grey levels, that images to predict get around their mean; null: their own"
    )
    scale: Positive = setting("factor that images are resized by; scores are on the masks' own size")
    scale_range: Range | None = setting(
        "random scale before the crop, [low, high]; null: the whole image is resized to crop_size"
    )
    class_uniform: Share = setting("share of the samples that are drawn class by class")
    edge: Edge


class CustomDataset(Dataset):
    """A data set class of the user's own, with keys of its own besides the common ones."""

    model_config = ConfigDict(extra="allow")


class Prepare(Settings):
    """How whole scenes are found and cut."""

    scenes: Target | None = setting("function that finds the scenes of a published archive; null: the folders above")
    size: Size | None = setting("window in pixels, or [height, width]; null: each scene as a whole")
    stride: Size | None = setting("distance between windows in pixels; null: the size, no overlap")
    expected: dict[str, Any] | None = setting(
        "{size, stride, train, val}: number of patches that a complete archive gives when cut like this"
    )


class SyntheticData(Dataset):
    """Procedural aerial scenes, drawn by seed and index."""

    size: Annotated[int, Field(ge=64)] = setting("side of a scene in pixels")
    train_images: Count = setting("number of training scenes")
    val_images: Count = setting("number of validation scenes")
    seed: Natural = setting("seed of the scenes, apart from the run's own")


class FolderData(Dataset):
    """Folders of images and masks."""

    images: str = setting("name of the folders with images")
    masks: str = setting("name of the folders with masks, beside those of the images, with the same file stems")
    mask_suffix: str = setting("what stems of masks have after the image's, such as _label")
    splits: dict[str, Any] | None = setting(
        "null: folders train, val, test; {train: [train, more], val: val.txt}; or a share: {val: 0.2, seed: 0}"
    )
    ignore: list[Any] = setting("colours and values in masks that mean 'no class', besides 255")
    bands: Bands | None = setting("channels of the file, from 0, that become red, green and blue; null: as stored")
    stretch: Percentiles | None = setting(
        "percentiles that become black and white in images of more than 8 bits, such as [2, 98]; null: full range"
    )
    source: Literal["patches", "scenes"] = setting("patches: images as they are; scenes: windows cut while training")
    prepare: Prepare


DatasetSettings: TypeAlias = Annotated[
    Annotated[SyntheticData, Tag("pfseg.data.synthetic.SyntheticDataset")]
    | Annotated[FolderData, Tag("pfseg.data.folder.FolderDataset")]
    | Annotated[CustomDataset, Tag(CUSTOM)],
    by_target("pfseg.data.synthetic.SyntheticDataset", "pfseg.data.folder.FolderDataset"),
]


class ResNet(Settings):
    """ResNet with a deep stem."""

    target: Literal["pfseg.models.resnet.ResNet"] = Field(alias="_target_", description="class of the backbone")
    depth: Literal[18, 50, 101] = setting("number of layers")


class Res2Net(Settings):
    """Res2Net 26w x 4s."""

    target: Literal["pfseg.models.res2net.Res2Net"] = Field(alias="_target_", description="class of the backbone")
    depth: Literal[101] = setting("number of layers")


Backbone: TypeAlias = Annotated[
    Annotated[ResNet, Tag("pfseg.models.resnet.ResNet")]
    | Annotated[Res2Net, Tag("pfseg.models.res2net.Res2Net")]
    | Annotated[Target, Tag(CUSTOM)],
    by_target("pfseg.models.resnet.ResNet", "pfseg.models.res2net.Res2Net"),
]


class Model(Settings):
    """What every network has."""

    target: str = Field(alias="_target_", description="class of the network, as package.module.Class")
    name: str = setting("name of the network, also part of the run folder's")
    num_classes: Count | None = setting("number of classes; null: as many as the data set has")
    pretrained: str | None = setting("weights file of a trained backbone to start from: .pth, .pkl or .safetensors")
    init: str | None = setting("weights or checkpoint of a whole network to start from, with any number of classes")


class CustomModel(Model):
    """A network of the user's own, with keys of its own besides the common ones."""

    model_config = ConfigDict(extra="allow")


class PFNet(Model):
    """PFNet (Li et al., CVPR 2021)."""

    variant: Variant = setting("family of published checkpoints that the network equals")
    num_edge_points: Natural = setting("boundary points per level; 0: no flow through them")
    match_dim: Count = setting("channels of the point matcher")
    fpn_dim: Count = setting("channels of the feature pyramid")
    edge_pool: Count = setting("side of the pooled map that boundary points are chosen from")
    salient_pool: Natural = setting("salient_pool² salient points per level; 0: no flow through them")
    pool_sizes: list[Count] | None = setting("sizes of the pyramid pooling; null: the variant's")
    dropout: Decay = setting("share of channels that are dropped in training")
    backbone: Backbone


ModelSettings: TypeAlias = Annotated[
    Annotated[PFNet, Tag("pfseg.models.pfnet.PFNet")] | Annotated[CustomModel, Tag(CUSTOM)],
    by_target("pfseg.models.pfnet.PFNet"),
]


class ImageWeighted(Settings):
    """Cross entropy weighted by the class frequencies of each image or of the batch."""

    target: Literal["pfseg.losses.ImageWeightedCrossEntropy"] = Field(
        alias="_target_", description="class of the segmentation loss"
    )
    upper_bound: NonNegative = setting("weight that a class without pixels approaches, above 1")
    per: Literal["image", "batch"] = setting("what class frequencies are counted over")
    reduction: Literal["mean", "sum"] = setting("how images are put together; sum: as published")
    global_reduction: bool = setting("whether pixels are counted over the batches of all ranks")


class Relaxed(Settings):
    """Boundary label relaxation."""

    target: Literal["pfseg.losses.RelaxedBoundaryLoss"] = Field(
        alias="_target_", description="class of the segmentation loss"
    )
    until_epoch: Natural | None = setting("epoch from which labels are taken as they are; null: never")
    global_reduction: bool = setting("whether pixels are counted over the batches of all ranks")


class PFNetLoss(Settings):
    """Segmentation loss, and the edge loss of the three levels."""

    target: Literal["pfseg.losses.PFNetLoss"] = Field(alias="_target_", description="class of the loss")
    segmentation: (
        Annotated[
            Annotated[ImageWeighted, Tag("pfseg.losses.ImageWeightedCrossEntropy")]
            | Annotated[Relaxed, Tag("pfseg.losses.RelaxedBoundaryLoss")]
            | Annotated[Target, Tag(CUSTOM)],
            by_target("pfseg.losses.ImageWeightedCrossEntropy", "pfseg.losses.RelaxedBoundaryLoss"),
        ]
        | None
    ) = setting("segmentation loss; null: cross entropy, with hard-example mining if ohem is true")
    ohem: bool = setting("whether only pixels whose true class has a probability of at most ohem_threshold count")
    ohem_threshold: Share = setting("probability of the true class above which a pixel counts as easy")
    min_kept: Count = setting("least number of pixels of a batch that count")
    seg_weight: NonNegative = setting("weight of the segmentation loss")
    edge: Literal["bce", "dice"] = setting("kind of the edge loss")
    edge_weight: NonNegative = setting("weight of the edge loss; 25 in the published recipes")
    ignore_index: Ignored = setting("label of pixels without a class")
    global_reduction: bool = setting(
        "whether pixels are chosen and counted over the batches of all ranks, not rank by rank as published"
    )


LossSettings: TypeAlias = Annotated[
    Annotated[PFNetLoss, Tag("pfseg.losses.PFNetLoss")] | Annotated[Target, Tag(CUSTOM)],
    by_target("pfseg.losses.PFNetLoss"),
]


class Optimizer(Settings):
    """What every optimizer has."""

    lr: Positive = setting("learning rate")
    scale_lr: Literal["none", "linear", "sqrt"] = setting(
        "how lr grows with the global batch relative to reference_batch"
    )
    reference_batch: Count = setting("images per step that lr is meant for")
    weight_decay: NonNegative = setting("weight decay")


class Sgd(Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = setting("kind of the optimizer")
    momentum: Decay = setting("momentum")
    nesterov: bool = setting("whether the momentum is Nesterov's")


class Adam(Optimizer):
    """Adam, and AdamW, which decays weights apart from the gradient."""

    name: Literal["adam", "adamw"] = setting("kind of the optimizer")
    betas: tuple[Decay, Decay] = setting("decay of the averages of the gradient and of its square")
    eps: Positive = setting("term added to the denominator")


OptimizerSettings: TypeAlias = Annotated[
    Annotated[Sgd, Tag("sgd")] | Annotated[Adam, Tag("adam")] | Annotated[Adam, Tag("adamw")],
    by_name("sgd", "adam", "adamw"),
]


class Schedule(Settings):
    """What every schedule has: a linear warm-up, then its own curve."""

    per: Literal["step", "epoch"] = setting("whether the rate changes with each step or each epoch")
    warmup_steps: Natural = setting("steps of the warm-up")
    warmup_start: Share = setting("fraction of lr at the first step of the warm-up")


class Constant(Schedule):
    """The same rate from the warm-up to the end."""

    name: Literal["constant"] = setting("kind of the schedule")


class PolyCurve(Schedule):
    """lr * (1 - done)^power."""

    power: Positive = setting("exponent")
    legacy: bool = setting("whether the rate runs one epoch ahead, as in the published runs")


class Poly(PolyCurve):
    """lr * (1 - done)^power."""

    name: Literal["poly"] = setting("kind of the schedule")


class SclPoly(PolyCurve):
    """Poly until `relax_epoch`, then lr * rescale * (1 - done since then)^repower."""

    name: Literal["scl_poly"] = setting("kind of the schedule")
    relax_epoch: Natural = setting("epoch at which the second curve starts")
    rescale: Positive = setting("fraction of lr that the second curve starts at")
    repower: Positive = setting("exponent of the second curve")


class Cosine(Schedule):
    """Half a cosine."""

    name: Literal["cosine"] = setting("kind of the schedule")
    end: Share = setting("fraction of lr at the end")


ScheduleSettings: TypeAlias = Annotated[
    Annotated[Poly, Tag("poly")]
    | Annotated[SclPoly, Tag("scl_poly")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[Constant, Tag("constant")],
    by_name("poly", "scl_poly", "cosine", "constant"),
]


class Augment(Settings):
    """Joint augmentation of image and mask."""

    target: Literal["pfseg.data.transforms.Augment"] = Field(alias="_target_", description="class of the augmentation")
    scale_range: Range | None = setting(
        "random scale before the crop, [low, high]; null: the whole image is resized to crop_size"
    )
    hflip: Share = setting("probability of a left-right flip")
    vflip: Share = setting("probability of an upside-down flip")
    rot90: bool = setting("whether to turn by a random multiple of 90 degrees")
    rotate: Annotated[float, Field(ge=0, le=180)] = setting("largest further rotation either way, in degrees")
    blur: Range | None = setting("sigma of a Gaussian blur in pixels, [low, high]; null: none")
    brightness: Share = setting("largest relative change of brightness")
    contrast: Share = setting("largest relative change of contrast")
    saturation: Share = setting("largest relative change of saturation")
    hue: Share = setting("largest shift of the hue, in turns of the colour wheel")
    max_class_share: Share | None = setting("share of one class above which a random crop is drawn again; null: any")
    cutmix: Share = setting("share of samples that get a rectangle of another one")


AugmentSettings: TypeAlias = Annotated[
    Annotated[Augment, Tag("pfseg.data.transforms.Augment")] | Annotated[Target, Tag(CUSTOM)],
    by_target("pfseg.data.transforms.Augment"),
]


class Wandb(Settings):
    """Weights & Biases."""

    project: str = setting("project that runs are logged to")
    entity: str | None = setting("user or team; null: the key's own")
    mode: Literal["auto", "online", "offline"] = setting("auto: online with a key and a network, otherwise offline")
    tags: list[str] = setting("tags of the run")
    checkpoints: list[Literal["last", "best"]] = setting("checkpoints that are uploaded as artifacts, by these aliases")


class TensorBoard(Settings):
    """TensorBoard files in tensorboard/ of the run folder."""


class Loggers(Settings):
    """Where a run is shown besides the terminal and its own files: any of these, classes of the user's own, or none."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Target] = Field(init=False)

    wandb: Wandb = None  # type: ignore[assignment]
    tensorboard: TensorBoard = None  # type: ignore[assignment]

    def chosen(self) -> dict[str, Settings]:
        """The loggers that were chosen, by name."""
        return {name: value for name, value in self.values().items() if value is not None}

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        return {name: value.dump() for name, value in self.chosen().items()}


class Inline(Settings):
    """In this very process, with one rank: for debuggers."""

    name: Literal["inline"] = setting("kind of the launch")


class Launch(Settings):
    """What every launch of ranks has."""

    timeout: Positive | None = setting("seconds without progress after which the job counts as hung; null: unlimited")
    interface: str | None = setting(
        "network interface or subnet between hosts, such as eth0 or 10.0.0.0/24; null: MPI chooses"
    )


class Mpi(Launch):
    """mpirun, on this host or several; it starts a process per rank, also for one."""

    name: Literal["mpi"] = setting("kind of the launch")
    hosts: list[str] | None = setting(
        "ranks by host over ssh, this host first: [node1:4,node2:4]; plain names: one rank per GPU; null: this host"
    )


class Slurm(Launch):
    """A job script for SLURM, whose job starts the same command with launch=mpi."""

    name: Literal["slurm"] = setting("kind of the launch")
    nodes: Count = setting("number of nodes; gpus is the number of GPUs of each, ranks that of all ranks")
    time: Count | None = setting("minutes; two minutes before their end the job saves and leaves")
    partition: str | None = setting("partition")
    account: str | None = setting("account")
    cpus_per_task: Count | None = setting("cores per rank")
    memory: str | None = setting("memory per node, such as 64G")
    options: list[str] = setting("further options of sbatch, such as [--constraint=a100,--mail-type=END]")
    setup: list[str] = setting("shell lines that come first, such as [module load cuda/12.4]")
    submit: bool = setting("whether to hand the script to sbatch")


LaunchSettings: TypeAlias = Annotated[
    Annotated[Mpi, Tag("mpi")] | Annotated[Slurm, Tag("slurm")] | Annotated[Inline, Tag("inline")],
    by_name("mpi", "slurm", "inline"),
]


class Job(Settings):
    """What training and evaluation have in common: they run in ranks."""

    seed: Seed = setting("seed of everything random")
    gpus: Gpus = setting("auto: all GPUs; 0: the CPU; a number; or a list of positions such as [0,2]")
    ranks: Ranks = setting("number of training processes; auto: one per GPU, or one on the CPU")
    logger: Loggers
    launch: LaunchSettings


class TrainBase(Job):
    """The settings of a training, which a preview takes too."""

    name: str = setting("first folder below outputs/")
    batch_size: Count = setting("images per rank and batch; the global batch is batch_size * ranks * accumulate")
    resume: str | None = setting("run folder to continue; all of its settings are taken over")
    pruner: Target | None = setting("Optuna pruner that ends bad trials early; see conf/hparams_search")
    trainer: Trainer
    dataset: DatasetSettings
    model: ModelSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    augment: AugmentSettings


class Train(TrainBase):
    """Train a network."""

    job: Literal["train"] = setting("the command")


class EvaluateData(Settings):
    """Settings of the data set that differ from the training's; `dataset.root` above all."""

    model_config = ConfigDict(extra="allow")

    root: str | None = setting("folder of the data set; null: as in training")


class Evaluate(Job):
    """Score checkpoints."""

    job: Literal["evaluate"] = setting("the command")
    checkpoint: str | list[str] = setting("run folder (its best checkpoint) or .safetensors file; several: [a,b,c]")
    trust: bool = setting("whether to run code that a checkpoint names and that isn't pfseg's own")
    split: Split = setting("split of the data set to score on")
    score: Literal["patches", "scenes", "both"] = setting(
        "patches: each image by itself, overlaps counted as published; scenes: patches put together; both"
    )
    eval_size: Size | Literal["whole"] | None = setting(
        "window in pixels, or [height, width]; whole: the whole image; null: as in training"
    )
    contrast: Contrast | Literal["own"] | None = setting(
        "standard deviation of grey levels that images get around their mean; own: their own; null: as in training"
    )
    overlap: Decay = setting("share of a window that the next one covers too; windows are blended smoothly")
    scales: list[Positive] = setting("factors that windows are resized by; probabilities are averaged")
    flips: Flips = setting("mirrored views that are averaged too: h (left-right), v, hv (both), d4 (8 symmetries)")
    exclude: list[str] = setting("classes that the means leave out; their pixels still count for the other classes")
    boundary: bool = setting("whether to compute the boundary F-score and the boundary IoU too")
    num_samples: Natural = setting("images in each picture: the first ones, the worst and the best by mIoU")
    batch_size: Count | None = setting("windows at a time, fewer where they are large; null: as in training")
    dataset: EvaluateData
