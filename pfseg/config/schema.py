"""Schemas of the configuration: one dataclass per group of conf/.

The YAML files hold every default, so the dataclasses have none, but for groups that may be left out: they say which
keys a group has, of which type and in which range. What each key means is said beside its default in the YAML file
that the docstring names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pfseg.config.launch_schema import Mpi, Slurm
from pfseg.config.validate import Kinds, Limit

Positive = Annotated[float, Limit(above=0)]
NonNegative = Annotated[float, Limit(least=0)]
Share = Annotated[float, Limit(least=0, most=1)]
Decay = Annotated[float, Limit(least=0, below=1)]
Count = Annotated[int, Limit(least=1)]
Natural = Annotated[int, Limit(least=0)]
Size = Count | tuple[Count, Count]  # pixels of a square, or height and width
Contrast = Annotated[float, Limit(above=0, most=127)]  # a standard deviation in grey levels
Percent = Annotated[float, Limit(least=0, most=100)]
Range = tuple[NonNegative, NonNegative]


@dataclass
class Trainer:
    """How long to train, and what happens around the steps; see conf/train.yaml for each key."""

    max_epochs: Count | None
    max_steps: Count | None
    log_every: Count
    val_every: Count
    accumulate: Count
    clip_grad: Positive | None
    freeze_bn: bool
    sync_bn: bool
    ema: Decay | None
    bn_batches: Natural
    early_stop: Count | None
    num_samples: Natural
    workers: Literal["auto"] | Natural
    save_every: Count | None
    max_time: Positive | None  # minutes
    log_grad_norm: bool


@dataclass
class Edge:
    """Edge labels: between which labels, and how thick in pixels."""

    rule: Literal["class", "foreground"]
    thickness: Count


@dataclass
class Dataset:
    """Keys of every data set; see conf/dataset/folder.yaml for each."""

    _target_: str
    name: str
    root: str | None
    classes: list[Any]  # rows for pfseg.data.base.parse_classes
    on_error: Literal["raise", "skip"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    ignore_index: Annotated[int, Limit(least=255, most=255)]
    crop_size: Size
    eval_size: Size | None
    eval_contrast: Contrast | None
    scale: Positive
    scale_range: Range | None
    class_uniform: Share
    edge: Edge


@dataclass
class Target:
    """A class or function, with whatever keywords it has."""

    _target_: str


@dataclass
class Prepare:
    """How whole scenes are found and cut; see conf/dataset/folder.yaml for each key."""

    scenes: Annotated[Target, Kinds("_target_", {}, Target)] | None
    size: Size | None
    stride: Size | None
    expected: dict[str, Any] | None


@dataclass
class SyntheticData(Dataset):
    """Procedural scenes: their side in pixels, how many, and their own seed."""

    size: Annotated[int, Limit(least=64)]
    train_images: Count
    val_images: Count
    seed: Natural


@dataclass
class FolderData(Dataset):
    """Folders of images and masks; see conf/dataset/folder.yaml for each key."""

    root: str
    images: str
    masks: str
    mask_suffix: str
    splits: dict[str, Any] | None
    ignore: list[Any]
    bands: tuple[Natural, Natural, Natural] | None
    stretch: tuple[Percent, Percent] | None
    source: Literal["patches", "scenes"]
    prepare: Prepare


@dataclass
class ResNet:
    """Deep-stem ResNet."""

    _target_: str
    depth: Literal[18, 50, 101]


@dataclass
class Res2Net:
    """Res2Net 26w x 4s."""

    _target_: str
    depth: Literal[101]


@dataclass
class Model(Target):
    """Keys of every model; num_classes null means the data set's."""

    name: str
    num_classes: Count | None
    pretrained: str | None
    init: str | None


@dataclass
class PFNet(Model):
    """PFNet; see conf/model/pfnet_r50.yaml for each key."""

    variant: Literal["pytorch", "jittor"]
    num_edge_points: Natural
    match_dim: Count
    fpn_dim: Count
    edge_pool: Count
    salient_pool: Natural
    pool_sizes: list[Count] | None
    dropout: Decay
    backbone: Annotated[
        Target,
        Kinds("_target_", {"pfseg.models.resnet.ResNet": ResNet, "pfseg.models.res2net.Res2Net": Res2Net}, Target),
    ]


@dataclass
class ImageWeighted:
    """Cross entropy weighted by the class frequencies of each image or of the batch."""

    _target_: str
    upper_bound: NonNegative
    per: Literal["image", "batch"]
    reduction: Literal["mean", "sum"]
    global_reduction: bool


@dataclass
class Relaxed:
    """Boundary label relaxation, until an epoch if one is given."""

    _target_: str
    until_epoch: Natural | None
    global_reduction: bool


@dataclass
class PFNetLoss:
    """Segmentation loss and the edge loss of the three levels; see conf/loss/pfnet.yaml for each key."""

    _target_: str
    segmentation: (
        Annotated[
            Target,
            Kinds(
                "_target_",
                {
                    "pfseg.losses.ImageWeightedCrossEntropy": ImageWeighted,
                    "pfseg.losses.RelaxedBoundaryLoss": Relaxed,
                },
                Target,
            ),
        ]
        | None
    )
    ohem: bool
    ohem_threshold: Share
    min_kept: Count
    seg_weight: NonNegative
    edge: Literal["bce", "dice"]
    edge_weight: NonNegative
    ignore_index: Annotated[int, Limit(least=255, most=255)]
    global_reduction: bool


@dataclass
class Sgd:
    """Stochastic gradient descent."""

    name: str
    lr: Positive
    scale_lr: Literal["none", "linear", "sqrt"]
    reference_batch: Count
    momentum: Decay
    weight_decay: NonNegative
    nesterov: bool


@dataclass
class Adam:
    """Adam, and AdamW with the weight decay apart from the gradient."""

    name: str
    lr: Positive
    scale_lr: Literal["none", "linear", "sqrt"]
    reference_batch: Count
    betas: tuple[Decay, Decay]
    eps: Positive
    weight_decay: NonNegative


@dataclass
class Schedule:
    """Keys of every schedule: stepped per step or epoch, after a linear warm-up from a fraction of the rate."""

    name: str
    per: Literal["step", "epoch"]
    warmup_steps: Natural
    warmup_start: Share


@dataclass
class Poly(Schedule):
    """lr * (1 - done)^power; `legacy` runs one epoch ahead, as the published runs did."""

    power: Positive
    legacy: bool


@dataclass
class SclPoly(Poly):
    """Poly until `relax_epoch`, then lr * rescale * (1 - done since)^repower."""

    relax_epoch: Natural
    rescale: Positive
    repower: Positive


@dataclass
class Cosine(Schedule):
    """Half a cosine, down to `end` times the rate."""

    end: Share


@dataclass
class Augment(Target):
    """Joint augmentation of image and mask; see conf/augment/published.yaml for each key."""

    scale_range: Range | None
    hflip: Share
    vflip: Share
    rot90: bool
    rotate: Annotated[float, Limit(least=0, most=180)]
    blur: Range | None
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Share
    max_class_share: Share | None
    cutmix: Share


@dataclass
class Wandb:
    """Weights & Biases; see conf/logger/wandb.yaml for each key."""

    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    tags: list[str]
    checkpoints: list[Literal["last", "best"]]


@dataclass
class TensorBoard:
    """TensorBoard files."""


@dataclass
class Loggers:
    """Where a run is shown besides the terminal and its own files: any of these, or none."""

    wandb: Wandb = None  # type: ignore[assignment]
    tensorboard: TensorBoard = None  # type: ignore[assignment]


@dataclass
class Named:
    """A kind without settings."""

    name: str


_LAUNCH = Kinds("name", {"mpi": Mpi, "slurm": Slurm, "inline": Named})


@dataclass
class Train:
    """conf/train.yaml."""

    job: Literal["train"]
    name: str
    seed: Annotated[int, Limit(least=0, below=2**31)]
    batch_size: Count
    gpus: Literal["auto"] | Natural | list[Natural]
    ranks: Literal["auto"] | Count
    resume: str | None
    pruner: Annotated[Target, Kinds("_target_", {}, Target)] | None
    trainer: Trainer
    dataset: Annotated[
        Dataset,
        Kinds(
            "_target_",
            {"pfseg.data.synthetic.SyntheticDataset": SyntheticData, "pfseg.data.folder.FolderDataset": FolderData},
            Dataset,
        ),
    ]
    model: Annotated[Model, Kinds("_target_", {"pfseg.models.pfnet.PFNet": PFNet}, Model)]
    loss: Annotated[Target, Kinds("_target_", {"pfseg.losses.PFNetLoss": PFNetLoss}, Target)]
    optimizer: Annotated[Sgd | Adam, Kinds("name", {"sgd": Sgd, "adam": Adam, "adamw": Adam})]
    schedule: Annotated[
        Schedule, Kinds("name", {"poly": Poly, "scl_poly": SclPoly, "cosine": Cosine, "constant": Schedule})
    ]
    augment: Annotated[Target, Kinds("_target_", {"pfseg.data.transforms.Augment": Augment}, Target)]
    logger: Loggers
    launch: Annotated[Mpi | Slurm | Named, _LAUNCH]


@dataclass
class DataRoot:
    """Where the data lie now."""

    root: str | None


@dataclass
class Evaluate:
    """conf/evaluate.yaml."""

    job: Literal["evaluate"]
    checkpoint: str | list[str]
    trust: bool
    split: Literal["train", "val", "test"]
    score: Literal["patches", "scenes", "both"]
    eval_size: Size | Literal["whole"] | None
    contrast: Contrast | Literal["own"] | None
    overlap: Decay
    scales: list[Positive]
    flips: Literal["none", "h", "v", "hv", "d4"]
    exclude: list[str]
    boundary: bool
    num_samples: Natural
    batch_size: Count | None
    gpus: Literal["auto"] | Natural | list[Natural]
    ranks: Literal["auto"] | Count
    seed: Annotated[int, Limit(least=0, below=2**31)]
    dataset: DataRoot
    logger: Loggers
    launch: Annotated[Mpi | Slurm | Named, _LAUNCH]
