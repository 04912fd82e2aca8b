"""Losses of PFNet, and the further ones that the published code offers: scalars float32, computed on the device.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`; edge logits (N, 1, H, W); edge
(N, H, W) float32 0 or 1. A batch without a valid pixel gives 0 and finite gradients.

Over several ranks gradients and terms are averaged. A loss that divides by the pixels of its own rank is then the mean
of the ranks' means; with `global_reduction` valid and kept pixels, class and edge frequencies are counted over the
batches of all ranks, and the average is the loss of the global batch, as one rank would compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np

from pfseg.ops import kernels, pixel_losses
from pfseg.ops.selection import global_kth_smallest, kth_smallest
from pfseg.runtime import Var, jt, world_size

nn = jt.nn


class Output(Protocol):
    """What a network returns: `logits` (N, K, H, W) and `edge_logits` (N, 1, H, W) each, coarse to fine."""

    @property
    def logits(self) -> Var: ...  # noqa: D102
    @property
    def edge_logits(self) -> tuple[Var, ...]: ...  # noqa: D102


def _one_hot(mask: Var, num_classes: int) -> Var:
    """One-hot (N, K, H, W) float32 of labels (N, H, W); all 0 where the label is none of 0..K-1."""
    classes = jt.array(np.arange(num_classes, dtype=np.int32))
    n, h, w = mask.shape
    shape = [n, num_classes, h, w]
    return (mask.broadcast(shape, [1]) == classes.broadcast(shape, [0, 2, 3])).float32()


def _log_sum_exp(logits: Var) -> Var:
    """Log of the sum of exponentials over the classes: (N, K, H, W) to (N, H, W)."""
    top = logits.max(1, keepdims=True).stop_grad()
    return jt.log(jt.exp(logits - top).sum(1)) + top.squeeze(1)


def _pixel_cross_entropy(logits: Var, mask: Var, ignore_index: int) -> tuple[Var, Var]:
    """Cross entropy per pixel (N, H, W), 0 where ignored, and the valid pixels (N, H, W) as float32 0 or 1."""
    valid = (mask != ignore_index).float32()
    if kernels.active():
        return pixel_losses.pixel_cross_entropy(logits, mask, ignore_index), valid
    truth = (logits * _one_hot(mask, logits.shape[1])).sum(1)
    return (_log_sum_exp(logits) - truth) * valid, valid


def _all_ranks(global_reduction: bool) -> bool:
    """Whether pixels are counted over several ranks."""
    return global_reduction and world_size() > 1


def _average_ranks(counts: Var, global_reduction: bool) -> Var:
    """The mean of the ranks' `counts` with `global_reduction`: losses divided by it average to the global batch's."""
    return counts.mpi_all_reduce("mean") if _all_ranks(global_reduction) else counts


def _mean(values: Var, weights: Var, global_reduction: bool) -> Var:
    """Sum of `values` over the sum of `weights`, 0 where that is 0."""
    total = _average_ranks(weights.sum(), global_reduction)
    return values.sum() / jt.ternary(total > 0, total, jt.ones_like(total))


def _weighted(loss: Var, weight: float) -> Var:
    return loss if weight == 1 else loss * weight  # a launch less


class CrossEntropy:
    """Mean cross entropy over the valid pixels (of all ranks with `global_reduction`)."""

    def __init__(self, *, ignore_index: int = 255, global_reduction: bool = False) -> None:
        self.ignore_index, self.global_reduction = ignore_index, global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        if kernels.active() and not _all_ranks(self.global_reduction):
            return pixel_losses.mean_cross_entropy(logits, mask, self.ignore_index)
        return _mean(*_pixel_cross_entropy(logits, mask, self.ignore_index), self.global_reduction)


class OhemCrossEntropy:
    """Mean cross entropy over the hard pixels (online hard example mining).

    Over all N*H*W pixels take the probability of the true class, ignored pixels counting as 1. Pixels up to t =
    max(`threshold`, the `min_kept`-th smallest of them) are kept; with fewer than `min_kept` valid pixels all of those
    are. They are chosen and counted in this rank's batch, or in all ranks' with `global_reduction`.
    """

    def __init__(
        self, threshold: float, min_kept: int, *, ignore_index: int = 255, global_reduction: bool = False
    ) -> None:
        self.threshold, self.min_kept, self.ignore_index = threshold, min_kept, ignore_index
        self.global_reduction = global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        all_ranks = _all_ranks(self.global_reduction)
        if kernels.active() and not all_ranks:
            return pixel_losses.ohem_cross_entropy(logits, mask, self.threshold, self.min_kept, self.ignore_index)
        loss, valid = _pixel_cross_entropy(logits, mask, self.ignore_index)
        with jt.no_grad():
            probability = jt.exp(-loss).minimum(1.0).reshape(-1)  # 1 where ignored
            count = probability.shape[0]
            if all_ranks:
                limit = global_kth_smallest(probability, min(self.min_kept, count * world_size()), self.threshold)
            else:
                limit = kth_smallest(probability, min(self.min_kept, count)).maximum(self.threshold)
            kept = valid * (probability <= limit.broadcast(probability)).float32().reshape(valid.shape)
        return _mean(loss * kept, kept, self.global_reduction)


class ImageWeightedCrossEntropy:
    """Cross entropy with class weights from the frequencies within each image, or the batch (`per`).

    A class that is present weighs 1 + `upper_bound` * (1 - frequency), an absent one 1; the loss of an image is the
    weighted mean over its valid pixels. `reduction` takes the mean over images, or the sum as in the published code.
    """

    def __init__(
        self,
        *,
        upper_bound: float,
        per: Literal["image", "batch"],
        reduction: Literal["mean", "sum"],
        global_reduction: bool,
        ignore_index: int = 255,
    ) -> None:
        self.upper_bound, self.per, self.reduction, self.ignore_index = upper_bound, per, reduction, ignore_index
        self.global_reduction = global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        n, k = logits.shape[:2]
        loss, _ = _pixel_cross_entropy(logits, mask, self.ignore_index)
        with jt.no_grad():
            one_hot = _one_hot(mask, k)
            pixels = one_hot.sum([2, 3])  # (N, K)
            if self.per == "batch":
                pixels = _average_ranks(pixels.sum(0, keepdims=True), self.global_reduction).broadcast([n, k])
            share = pixels / pixels.sum(1, keepdims=True).maximum(1.0)
            weights = jt.ternary(pixels > 0, 1.0 + self.upper_bound * (1.0 - share), jt.ones_like(share))
            pixel_weights = (one_hot * weights.broadcast(one_hot, [2, 3])).sum(1)  # 0 where ignored
            total = pixel_weights.sum([1, 2])
            total = jt.ternary(total > 0, total, jt.ones_like(total))
        images = (loss * pixel_weights).sum([1, 2]) / total  # (N,)
        if self.reduction == "mean":
            return images.mean()
        return images.sum() * (world_size() if self.global_reduction else 1)


class RelaxedBoundaryLoss:
    """Cross entropy that lets a pixel near a border take any class of its 3x3 neighbourhood.

    The loss of a pixel is minus the log of the summed probabilities of the allowed classes, divided by their number
    (Zhu et al., "Improving Semantic Segmentation via Video Propagation and Label Relaxation", CVPR 2019). Ignored
    pixels allow nothing and count nothing; the image's edge has no neighbours outside. From `until_epoch` on (counted
    from 0; None: never) there is no relaxation; the trainer sets `epoch`.
    """

    def __init__(self, *, until_epoch: int | None, global_reduction: bool, ignore_index: int = 255) -> None:
        self.until_epoch, self.ignore_index, self.global_reduction = until_epoch, ignore_index, global_reduction
        self.epoch = 0

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        if self.until_epoch is not None and self.epoch >= self.until_epoch:
            return _mean(*_pixel_cross_entropy(logits, mask, self.ignore_index), self.global_reduction)
        valid = (mask != self.ignore_index).float32()
        with jt.no_grad():
            one_hot = _one_hot(mask, logits.shape[1])
            allowed = nn.Pool(3, stride=1, padding=1, op="maximum")(one_hot).maximum(0.0)  # by any pixel of the 3x3
            count = allowed.sum(1).maximum(1.0)
        # log(sum over allowed) as log-sum-exp over logits pushed far down where a class is not allowed
        loss = _log_sum_exp(logits) - _log_sum_exp(logits + (allowed - 1.0) * 1e9)
        return _mean(loss * valid / count, valid, self.global_reduction)


class EdgeLoss:
    """Loss of one edge map, of kind `bce` or `dice`; raises ValueError for another.

    `bce`: binary cross entropy in which a positive pixel weighs negatives / all and a negative one positives / all,
    counted over the batch (of all ranks with `global_reduction`), then the mean over all pixels (not over the weights).
    `dice`: 1 - (2 * sum(p * t) + 1) / (sum(p² + t²) + 1) per sample on probabilities, averaged.
    """

    def __init__(self, kind: str, *, global_reduction: bool) -> None:
        if kind not in ("bce", "dice"):
            raise ValueError(f"edge loss {kind!r} is unknown; use 'bce' or 'dice' (config: loss.edge)")
        self.kind, self.global_reduction = kind, global_reduction

    def __call__(self, logits: Var, edge: Var) -> Var:
        """Loss of edge logits (N, 1, H, W) against edge (N, H, W)."""
        x = logits.squeeze(1)
        if self.kind == "dice":
            p = jt.sigmoid(x)
            overlap = (p * edge).sum([1, 2])
            total = (p * p + edge * edge).sum([1, 2])
            return (1.0 - (2.0 * overlap + 1.0) / (total + 1.0)).mean()
        if kernels.active():
            return pixel_losses.edge_cross_entropy(logits, edge, _all_ranks(self.global_reduction))
        count = edge.numel()
        with jt.no_grad():
            positive = _average_ranks(edge.sum(), self.global_reduction)
            weight = (edge * (count - positive) + (1.0 - edge) * positive) / count
        loss = x.maximum(0.0) - x * edge + jt.log(1.0 + jt.exp(-x.abs()))
        return (loss * weight).mean()


class PFNetLoss:
    """Segmentation loss times `seg_weight` plus `EdgeLoss` of each edge map times `edge_weight` (0 leaves edges out).

    `segmentation` is called with (logits, mask) and has its own `global_reduction`; None stands for `OhemCrossEntropy`,
    or plain `CrossEntropy` without `ohem`.
    """

    def __init__(
        self,
        *,
        segmentation: Callable[[Var, Var], Var] | None,
        ohem: bool,
        ohem_threshold: float,
        min_kept: int,
        seg_weight: float,
        edge: str,
        edge_weight: float,
        ignore_index: int,
        global_reduction: bool,
    ) -> None:
        plain = CrossEntropy(ignore_index=ignore_index, global_reduction=global_reduction)
        hard = OhemCrossEntropy(ohem_threshold, min_kept, ignore_index=ignore_index, global_reduction=global_reduction)
        self.segmentation = segmentation or (hard if ohem else plain)
        self.edge = EdgeLoss(edge, global_reduction=global_reduction)
        self.edge_weight, self.seg_weight = edge_weight, seg_weight

    def start_epoch(self, epoch: int) -> None:
        """Tell a loss that changes with training which epoch (from 0) begins."""
        if hasattr(self.segmentation, "epoch"):
            self.segmentation.epoch = epoch

    def __call__(self, output: Output, batch: Mapping[str, Var]) -> dict[str, Var]:
        """Terms of the loss, weights applied: `seg`, and `edge_layer3`, `edge_layer2`, `edge_layer1` (coarse to fine).

        The batch has `mask` (N, H, W) int32 and `edge` (N, H, W) float32.
        """
        terms = {"seg": _weighted(self.segmentation(output.logits, batch["mask"]), self.seg_weight)}
        if self.edge_weight:
            levels = range(len(output.edge_logits), 0, -1)
            for level, logits in zip(levels, output.edge_logits, strict=True):
                terms[f"edge_layer{level}"] = _weighted(self.edge(logits, batch["edge"]), self.edge_weight)
        return terms
