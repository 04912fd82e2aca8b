"""The learning-rate finder: reads a good rate off a run with `schedule=range_test`.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3.
"""

from __future__ import annotations

import math

from pfseg.engine.trainer import Hook, Trainer
from pfseg.files import write_atomic
from pfseg.reporting.charts import Curve, Points, chart, smooth
from pfseg.reporting.rendering import render
from pfseg.runtime import rank

_GROWTH = 4.0  # times the least loss: where the run ends
_LEAST = 10  # rates that the steepest descent is looked for among


class RangeTest(Hook):
    """Ends the run where the loss has grown by a factor of 4, draws it in `lr_find.html`, and suggests a rate."""

    def __init__(self) -> None:
        self._points: Points = []  # (log10 of the learning rate, loss)

    def after_step(self, trainer: Trainer) -> None:
        """Note the loss; without a suggestion the loss that isn't finite is an error, as always."""
        self._points.append((math.log10(trainer.lr(trainer.state.step - 1)), sum(trainer.losses.values())))
        loss = smooth(self._points)
        if loss[-1][1] > _GROWTH * min(value for _, value in loss):
            trainer.status = "done"

    def after_train(self, trainer: Trainer) -> None:
        """Draw the loss and suggest a rate."""
        if rank() != 0 or len(self._points) < _LEAST:
            return
        best = suggest(self._points)
        text = f"the loss falls most steeply at a learning rate of {best:.1e}: try optimizer.lr={best:.1e}"
        figure = chart("loss", [Curve(0, "loss", self._points)], loss=True, over="log10(learning rate)")
        page = render("lr_find.html.j2", title="Learning-rate finder", facts=[text], figure=figure)
        write_atomic(trainer.folder / "lr_find.html", page)
        trainer.record("message", level="info", text=f"{text}; see lr_find.html in the run folder")


def suggest(points: Points) -> float:
    """The rate at which the smoothed loss falls most steeply, before its least value.

    Args:
        points: at least 2 pairs of log10(rate) and loss, rates ascending.
    """
    loss = smooth(points)
    least = min(range(len(loss)), key=lambda i: loss[i][1])
    falls = [(loss[i + 1][1] - loss[i][1], loss[i][0]) for i in range(max(least, 1))]
    return float(10.0 ** min(falls)[1])
