"""Labels and the confusion matrix on the GPU kernels, so that logits and label maps stay on the device."""

from __future__ import annotations

from pfseg.ops import kernels
from pfseg.runtime import Var


def labels(logits: Var) -> Var:
    """Most probable classes (N, H, W) uint8, the first of equals, of logits (N, K, H, W) float32; K up to 256."""
    n, _, h, w = logits.shape
    return kernels.run("scores_labels", [((n, h, w), "uint8")], [logits])[0]


def confusion(predicted: Var, mask: Var, num_classes: int, ignore_index: int = 255) -> Var:
    """Count the pixels as (K, K) int32, `[truth, prediction]`, from uint8 labels and an int32 mask of their shape.

    Ignored pixels are left out, and so are those whose truth or prediction is none of 0..K-1.
    """
    outputs = [((num_classes, num_classes), "int32")]
    return kernels.run("scores_confusion", outputs, [predicted, mask], ignore_index=ignore_index)[0]
