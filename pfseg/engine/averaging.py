"""Exponential moving average (EMA) of a network's weights and running statistics."""

from __future__ import annotations

from pfseg.weights.transfer import Arrays, Module, assign, to_arrays


class WeightAverage:
    """Averaged weights.

    Args:
        model: the network to follow.
        decay: share of the old value that each step keeps; at first smaller, (1 + t) / (10 + t) at step t, so that the
            average forgets the initial weights.
    """

    def __init__(self, model: Module, decay: float) -> None:
        self.decay = decay
        self.average = {key: var.clone().stop_grad() for key, var in model.state_dict().items()}

    def update(self, model: Module, step: int) -> None:
        """Include the weights after `step` (from 0)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for key, var in model.state_dict().items():
            average = self.average[key]
            average.update(average * keep + var.detach() * (1 - keep))

    def load(self, arrays: Arrays) -> None:
        """Continue from stored averages."""
        assign(self.average, arrays)

    def export(self) -> Arrays:
        """The averages by key."""
        return to_arrays(self.average)
