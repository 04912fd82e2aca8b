"""Losses of edge maps: logits (N, 1, H, W), edge (N, H, W) float32 0 or 1."""

from __future__ import annotations

from pfseg.losses.pixels import all_ranks, average_ranks
from pfseg.ops import kernels, pixel_losses
from pfseg.runtime import Var, jt


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
            return pixel_losses.edge_cross_entropy(logits, edge, all_ranks(self.global_reduction))
        count = edge.numel()
        with jt.no_grad():
            positive = average_ranks(edge.sum(), self.global_reduction)
            weight = (edge * (count - positive) + (1.0 - edge) * positive) / count
        loss = x.maximum(0.0) - x * edge + jt.log(1.0 + jt.exp(-x.abs()))
        return (loss * weight).mean()
