"""Settings of the group `loss`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pfseg.config import types as t
from pfseg.config.settings import KINDS, CustomTarget, Several, Target, setting


class ImageWeighted(Target, shipped="pfseg.losses.ImageWeightedCrossEntropy"):
    """Cross entropy weighted by the class frequencies of each image or of the batch."""

    upper_bound: t.NonNegative = setting("weight that a class without pixels approaches, above 1")
    per: Literal["image", "batch"] = setting("what class frequencies are counted over")
    reduction: Literal["mean", "sum"] = setting("how images are put together; sum: as published")
    global_reduction: bool = setting("whether pixels are counted over the batches of all ranks")


class Relaxed(Target, shipped="pfseg.losses.RelaxedBoundaryLoss"):
    """Boundary label relaxation."""

    until_epoch: t.Natural | None = setting("epoch from which labels are used unrelaxed; null: never")
    global_reduction: bool = setting("whether pixels are counted over the batches of all ranks")


Segmentation: TypeAlias = Annotated[ImageWeighted | Relaxed | CustomTarget, KINDS]


class Term(Target):
    """What every further term of a loss has."""

    weight: t.NonNegative = setting("weight of the term")
    ohem: bool = setting("whether only the hard pixels count, by ohem_threshold and min_kept of the loss")
    ignore_index: t.Ignored = setting("label of pixels without a class")


class Lovasz(Term, shipped="pfseg.losses.LovaszLoss"):
    """Lovász-softmax (Berman et al., CVPR 2018)."""

    per_image: bool = setting("whether the overlap is counted over each image, not over the batch")


class Focal(Term, shipped="pfseg.losses.FocalLoss"):
    """Focal loss (Lin et al., ICCV 2017), and FarSeg's annealed one."""

    gamma: t.NonNegative = setting("how strongly pixels that are right count less")
    constant: bool = setting("whether no gradient flows through the factors, as in FarSeg")
    normalise: bool = setting("whether the sum is scaled to that of the cross entropy")
    annealing: Literal["cosine", "poly", "linear"] | None = setting("how the factors replace 1; null: not at all")
    steps: t.Count = setting("updates after which the annealing is over")
    global_reduction: bool = setting("whether pixels are counted over the batches of all ranks")


class Tversky(Term, shipped="pfseg.losses.TverskyLoss"):
    """Tversky loss (Salehi et al., 2017), with alpha = beta = 0.5 the Dice loss."""

    alpha: t.NonNegative = setting("weight of false positives")
    beta: t.NonNegative = setting("weight of false negatives")
    smooth: t.NonNegative = setting("pixels that are added to numerator and denominator")


class Terms(Several):
    """Further terms beside the segmentation loss."""

    lovasz: Lovasz = None  # type: ignore[assignment]
    focal: Focal = None  # type: ignore[assignment]
    tversky: Tversky = None  # type: ignore[assignment]
    dice: Tversky = None  # type: ignore[assignment]


class PFNetLossSettings(Target, shipped="pfseg.losses.PFNetLoss"):
    """Segmentation loss, and the edge loss of the three levels."""

    segmentation: Segmentation | None = setting("null: cross entropy, with hard-example mining if ohem is true")
    ohem: bool = setting("whether only pixels whose true class has a probability of at most ohem_threshold count")
    ohem_threshold: t.Share = setting("probability of the true class above which a pixel counts as easy")
    min_kept: t.Count = setting("least number of pixels of a batch that count")
    class_weights: list[t.NonNegative] | Literal["median_frequency", "effective_number"] | None = setting(
        "weights of the classes in the cross entropy, given or from the training masks; null: equal"
    )
    label_smoothing: t.Decay = setting("share of a pixel's label that is spread over all classes")
    terms: Terms
    seg_weight: t.NonNegative = setting("weight of the segmentation loss")
    edge: Literal["bce", "dice"] = setting("kind of the edge loss")
    edge_weight: t.NonNegative = setting("weight of the edge loss; 25 in the published recipes")
    aux_weight: t.NonNegative = setting("weight of the cross entropy of each auxiliary head")
    aux_min_kept: t.Count | None = setting("least number of pixels of auxiliary heads that count; null: all do")
    point_weight: t.NonNegative = setting("weight of the cross entropy of points, as PointRend's")
    ignore_index: t.Ignored = setting("label of pixels without a class")
    global_reduction: bool = setting(
        "whether pixels are chosen and counted over all ranks, not one by one as published"
    )


LossSettings: TypeAlias = Annotated[PFNetLossSettings | CustomTarget, KINDS]
