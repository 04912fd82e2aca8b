"""Losses of the regions of classes rather than of pixels: of their overlap with the truth.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`. Means are over the classes that
occur in the mask.
"""

from __future__ import annotations

from typing import Any

from pfseg.losses.pixels import one_hot
from pfseg.losses.terms import Term
from pfseg.ops.lovasz import jaccard_slopes
from pfseg.runtime import Var, jt

nn = jt.nn


def _mean_of_present(values: Var, pixels: Var) -> Var:
    """Mean of the values (K,) of classes that have pixels (K,); 0 without any."""
    present = (pixels > 0).float32()
    mean: Var = (values * present).sum() / present.sum().maximum(1.0)
    return mean


class LovaszLoss(Term):
    """Lovász-softmax (Berman et al., CVPR 2018): the extension of 1 - IoU to probabilities, over the batch.

    With `per_image` it is the mean over the images.
    """

    def __init__(self, *, per_image: bool, **term: Any) -> None:
        super().__init__(**term)
        self.per_image = per_image

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        truth = one_hot(mask, logits.shape[1])
        valid = truth.sum(1).broadcast(truth, [1])
        errors = (truth - nn.softmax(logits, 1)).abs() * valid
        n, k = logits.shape[:2]
        if not self.per_image:
            return self._loss(*(x.permute(1, 0, 2, 3).reshape(k, -1) for x in (errors, truth)))
        images = [self._loss(errors[i].reshape(k, -1), truth[i].reshape(k, -1)) for i in range(n)]
        return sum(images[1:], images[0]) / n

    @staticmethod
    def _loss(errors: Var, truth: Var) -> Var:
        """Of errors (K, P) of classes with pixels (K, P) 0 or 1."""
        return _mean_of_present((errors * jaccard_slopes(errors, truth)).sum(1), truth.sum(1))


class TverskyLoss(Term):
    """1 - (TP + smooth) / (TP + alpha * FP + beta * FN + smooth) of each class (Salehi et al., 2017).

    The three are sums of probabilities over the batch. With alpha = beta = 0.5 it is the Dice loss.
    """

    def __init__(self, *, alpha: float, beta: float, smooth: float, **term: Any) -> None:
        super().__init__(**term)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        truth = one_hot(mask, logits.shape[1])
        probability = nn.softmax(logits, 1) * truth.sum(1).broadcast(truth, [1])
        pixels = truth.sum([0, 2, 3])
        hits = (probability * truth).sum([0, 2, 3])
        false_positives, false_negatives = probability.sum([0, 2, 3]) - hits, pixels - hits
        score = (hits + self.smooth) / (
            hits + self.alpha * false_positives + self.beta * false_negatives + self.smooth
        ).maximum(1e-12)
        return _mean_of_present(1.0 - score, pixels)
