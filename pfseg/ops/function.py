"""The base of operators with a gradient of their own."""

from __future__ import annotations

from collections.abc import Sequence

from pfseg.runtime import Var, jt


class Function(jt.Function):
    """Jittor's `Function`, which lets go of what it holds as soon as its gradient is asked for: that is once.

    Jittor itself keeps it, and the maps in its attributes, until all that was asked for together is computed: the whole
    training step.
    """

    def _grad(self, *upstream: Var | None) -> Sequence[Var | None]:
        gradients: Sequence[Var | None] = super()._grad(*upstream)
        vars(self).clear()
        return gradients
