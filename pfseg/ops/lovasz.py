"""How the Jaccard loss of classes grows with the errors of their pixels, by Lovász' extension (Berman et al., 2018)."""

from __future__ import annotations

from pfseg.ops import kernels
from pfseg.runtime import Var, jt


def jaccard_slopes(errors: Var, members: Var) -> Var:
    """Slopes (K, P) float32, constants, for errors (K, P) of classes with members (K, P) 0 or 1.

    The loss of a class is the sum of errors times slopes. In the order of falling errors a member adds 1 / U, another
    pixel I / (U * (U + 1)), where union U and intersection I are those of the pixels before.
    """
    with jt.no_grad():
        if not kernels.active():
            return kernels.run_on_cpu("losses_lovasz", [(errors.shape, "float32")], [errors, members])[0]
        k, count = errors.shape
        order, _ = jt.argsort(errors, dim=1, descending=True)
        ordered = members.reindex([k, count], ["i0", "@e0(i0,i1)"], extras=[order])
        common = ordered.sum(1, keepdims=True).broadcast(ordered)
        shared = common - (jt.cumsum(ordered, 1) - ordered)
        whole = common + (jt.cumsum(1.0 - ordered, 1) - (1.0 - ordered))
        slopes = jt.ternary(ordered > 0, 1.0 / whole.maximum(1.0), shared / (whole * (whole + 1.0)).maximum(1.0))
        slopes = jt.ternary(common > 0, slopes, jt.zeros_like(slopes))
        placed: Var = slopes.reindex_reduce("add", [k, count], ["i0", "@e0(i0,i1)"], extras=[order])
        return placed
