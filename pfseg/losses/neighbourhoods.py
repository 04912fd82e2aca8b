"""Cross entropies whose weights or labels follow from what is around a pixel: its image, or its neighbours.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`.
"""

from __future__ import annotations

from typing import Literal

from pfseg.losses.pixels import average_ranks, log_sum_exp, mean, one_hot, pixel_cross_entropy
from pfseg.runtime import Var, jt, world_size

nn = jt.nn


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
        loss, _ = pixel_cross_entropy(logits, mask, self.ignore_index)
        with jt.no_grad():
            members = one_hot(mask, k)
            pixels = members.sum([2, 3])  # (N, K)
            if self.per == "batch":
                pixels = average_ranks(pixels.sum(0, keepdims=True), self.global_reduction).broadcast([n, k])
            share = pixels / pixels.sum(1, keepdims=True).maximum(1.0)
            weights = jt.ternary(pixels > 0, 1.0 + self.upper_bound * (1.0 - share), jt.ones_like(share))
            pixel_weights = (members * weights.broadcast(members, [2, 3])).sum(1)  # 0 where ignored
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
            return mean(*pixel_cross_entropy(logits, mask, self.ignore_index), self.global_reduction)
        valid = (mask != self.ignore_index).float32()
        with jt.no_grad():
            members = one_hot(mask, logits.shape[1])
            allowed = nn.Pool(3, stride=1, padding=1, op="maximum")(members).maximum(0.0)  # by any pixel of the 3x3
            count = allowed.sum(1).maximum(1.0)
        # log(sum over allowed) as log-sum-exp over logits pushed far down where a class is not allowed
        loss = log_sum_exp(logits) - log_sum_exp(logits + (allowed - 1.0) * 1e9)
        return mean(loss * valid / count, valid, self.global_reduction)
