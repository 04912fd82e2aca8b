"""Cross entropy of all pixels or the hard ones, with weights of classes and softened labels.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfseg.losses.pixels import all_ranks, log_sum_exp, mean, one_hot, pixel_cross_entropy
from pfseg.ops import kernels, pixel_losses
from pfseg.ops.selection import global_kth_smallest, kth_smallest
from pfseg.runtime import Var, jt, world_size


class CrossEntropy:
    """Mean cross entropy over the valid pixels (of all ranks with `global_reduction`)."""

    def __init__(self, *, ignore_index: int = 255, global_reduction: bool = False) -> None:
        self.ignore_index, self.global_reduction = ignore_index, global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        if kernels.active() and not all_ranks(self.global_reduction):
            return pixel_losses.mean_cross_entropy(logits, mask, self.ignore_index)
        return mean(*pixel_cross_entropy(logits, mask, self.ignore_index), self.global_reduction)


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
        if kernels.active() and not all_ranks(self.global_reduction):
            return pixel_losses.ohem_cross_entropy(logits, mask, self.threshold, self.min_kept, self.ignore_index)
        loss, kept = self._hard(logits, mask)
        return mean(loss * kept, kept, self.global_reduction)

    def hard_mask(self, logits: Var, mask: Var) -> Var:
        """The mask (N, H, W) with `ignore_index` where a pixel is not kept."""
        with jt.no_grad():
            _, kept = self._hard(logits, mask)
            hard: Var = jt.ternary(kept > 0, mask, jt.full_like(mask, self.ignore_index))
        return hard

    def _hard(self, logits: Var, mask: Var) -> tuple[Var, Var]:
        """Cross entropy of each pixel (N, H, W), and the kept ones (N, H, W) as float32 0 or 1."""
        loss, valid = pixel_cross_entropy(logits, mask, self.ignore_index)
        with jt.no_grad():
            probability = jt.exp(-loss).minimum(1.0).reshape(-1)  # 1 where ignored
            count = probability.shape[0]
            if all_ranks(self.global_reduction):
                limit = global_kth_smallest(probability, min(self.min_kept, count * world_size()), self.threshold)
            else:
                limit = kth_smallest(probability, min(self.min_kept, count)).maximum(self.threshold)
            return loss, valid * (probability <= limit.broadcast(probability)).float32().reshape(valid.shape)


class SoftCrossEntropy:
    """Cross entropy with a weight for each class and softened labels, as PyTorch defines it.

    A pixel's loss is (1 - s) * w_y * -log p_y + s / K * the sum of w_c * -log p_c over all classes, s being
    `label_smoothing` and y the true class; their sum is divided by that of w_y. None: weights of 1.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None,
        label_smoothing: float,
        *,
        ignore_index: int = 255,
        global_reduction: bool = False,
    ) -> None:
        self.weights, self.smoothing = class_weights, label_smoothing
        self.ignore_index, self.global_reduction = ignore_index, global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        k = logits.shape[1]
        truth = one_hot(mask, k)
        weights = jt.array(np.ones(k, np.float32) if self.weights is None else np.array(self.weights, np.float32))
        weights = weights.broadcast(truth, [0, 2, 3])
        own = (truth * weights).sum(1)  # 0 where ignored
        valid = truth.sum(1).broadcast(truth, [1])
        targets = (truth * (1.0 - self.smoothing) + valid * (self.smoothing / k)) * weights
        log_p = logits - log_sum_exp(logits).broadcast(logits, [1])
        return mean(-(targets * log_p).sum(1), own, self.global_reduction)
