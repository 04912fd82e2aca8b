"""What losses of pixels are made of.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`.
"""

from __future__ import annotations

import numpy as np

from pfseg.ops import kernels, pixel_losses
from pfseg.runtime import Var, jt, world_size


def one_hot(mask: Var, num_classes: int) -> Var:
    """One-hot (N, K, H, W) float32 of labels (N, H, W); all 0 where the label is none of 0..K-1."""
    classes = jt.array(np.arange(num_classes, dtype=np.int32))
    n, h, w = mask.shape
    shape = [n, num_classes, h, w]
    return (mask.broadcast(shape, [1]) == classes.broadcast(shape, [0, 2, 3])).float32()


def log_sum_exp(logits: Var) -> Var:
    """Log of the sum of exponentials over the classes: (N, K, H, W) to (N, H, W)."""
    top = logits.max(1, keepdims=True).stop_grad()
    return jt.log(jt.exp(logits - top).sum(1)) + top.squeeze(1)


def pixel_cross_entropy(logits: Var, mask: Var, ignore_index: int) -> tuple[Var, Var]:
    """Cross entropy per pixel (N, H, W), 0 where ignored, and the valid pixels (N, H, W) as float32 0 or 1."""
    valid = (mask != ignore_index).float32()
    if kernels.active():
        return pixel_losses.pixel_cross_entropy(logits, mask, ignore_index), valid
    truth = (logits * one_hot(mask, logits.shape[1])).sum(1)
    return (log_sum_exp(logits) - truth) * valid, valid


def all_ranks(global_reduction: bool) -> bool:
    """Whether pixels are counted over several ranks."""
    return global_reduction and world_size() > 1


def average_ranks(counts: Var, global_reduction: bool) -> Var:
    """The mean of the ranks' `counts` with `global_reduction`: losses divided by it average to the global batch's."""
    return counts.mpi_all_reduce("mean") if all_ranks(global_reduction) else counts


def mean(values: Var, weights: Var, global_reduction: bool) -> Var:
    """Sum of `values` over the sum of `weights`, 0 where that is 0."""
    total = average_ranks(weights.sum(), global_reduction)
    return values.sum() / jt.ternary(total > 0, total, jt.ones_like(total))
