"""What a further term of a loss has, beside what it computes."""

from __future__ import annotations

from pfseg.runtime import Var


class Term:
    """A loss of logits (N, K, H, W) against mask (N, H, W).

    Attributes:
        weight: in the sum of all terms.
        ohem: whether the mask is only of the hard pixels, see `OhemCrossEntropy.hard_mask`.
        step: number of the update, from 1; the trainer sets it.
    """

    step = 1

    def __init__(self, *, weight: float, ohem: bool, ignore_index: int) -> None:
        self.weight, self.ohem, self.ignore_index = weight, ohem, ignore_index

    def __call__(self, logits: Var, mask: Var) -> Var:
        """The term, without its weight."""
        raise NotImplementedError
