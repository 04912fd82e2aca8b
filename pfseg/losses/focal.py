"""Focal loss: cross entropy of which pixels that are right already have less (Lin et al., ICCV 2017).

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pfseg.losses.pixels import average_ranks, pixel_cross_entropy
from pfseg.losses.terms import Term
from pfseg.runtime import Var, jt

# Share of the plain cross entropy in the annealed loss, by the share of the annealing that is over.
_ANNEALING: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (math.cos(math.pi * done) + 1.0),
    "poly": lambda done: (1.0 - done) ** 0.9,
    "linear": lambda done: 1.0 - done,
}


class FocalLoss(Term):
    """Sum of (1 - p)^gamma * -log p, p the true class's probability, over the number of valid pixels and images.

    With `constant` no gradient flows through the factors, as in FarSeg (Zheng et al., CVPR 2020). With `normalise` the
    sum is scaled to that of -log p. With `annealing` constant and normalised factors replace 1 little by little, within
    `steps` updates, as in FarSeg's own recipe.
    """

    def __init__(
        self,
        *,
        gamma: float,
        constant: bool,
        normalise: bool,
        annealing: str | None,
        steps: int,
        global_reduction: bool,
        **term: Any,
    ) -> None:
        super().__init__(**term)
        self.gamma, self.constant, self.normalise = gamma, constant, normalise
        self.annealing, self.steps = annealing, steps
        self.global_reduction = global_reduction

    def __call__(self, logits: Var, mask: Var) -> Var:
        """Loss of logits (N, K, H, W) against mask (N, H, W)."""
        loss, valid = pixel_cross_entropy(logits, mask, self.ignore_index)
        if self.annealing is None:
            factors = self._factors(loss)
            weighted = loss * (factors.stop_grad() if self.constant else factors)
            if self.normalise:
                weighted = weighted * self._norm(loss, weighted).broadcast(weighted)
        else:
            with jt.no_grad():
                factors = self._factors(loss)
                factors = factors * self._norm(loss, loss * factors).broadcast(factors)
                plain = _ANNEALING[self.annealing](min(1.0, self.step / self.steps))
                factors = factors + jt.array([plain], dtype="float32").broadcast(factors) * (1.0 - factors)
            weighted = loss * factors
        return weighted.sum() / average_ranks(valid.sum() + logits.shape[0], self.global_reduction)

    def _factors(self, loss: Var) -> Var:
        factors: Var = (1.0 - jt.exp(-loss)).maximum(1e-6) ** self.gamma
        return factors

    def _norm(self, loss: Var, weighted: Var) -> Var:
        """The sum of the losses over that of the weighted ones."""
        sums = (average_ranks(part.sum(), self.global_reduction) for part in (loss, weighted))
        whole, part = sums
        return (whole / part.maximum(1e-12)).stop_grad()
