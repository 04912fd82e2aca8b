"""The largest and smallest of many values, without gradient."""

from __future__ import annotations

from pfseg.ops import kernels, pixel_losses
from pfseg.runtime import Var, jt


def top_points(x: Var, count: int) -> Var:
    """Positions (N, min(count, H*W)) int32 of the largest entries of (N, 1, H, W) float32, in any order."""
    n, _, height, width = x.shape
    if kernels.active():
        return kernels.run("points_top", [((n, min(count, height * width)), "int32")], [x])[0]
    flat = x.reshape(n, -1)
    order, _ = jt.argsort(flat, dim=1, descending=True)
    return order[:, : min(count, flat.shape[1])].int32()


def kth_smallest(values: Var, k: int) -> Var:
    """The k-th smallest (k from 1) of a flat float32 Var, shape (1,)."""
    if kernels.active():
        return kernels.run("losses_kth_smallest", [((1,), "float32"), pixel_losses.SCRATCH], [values], k=k)[0]
    return kernels.run_on_cpu("selection_order_statistic", [((1,), "float32")], [values], k=k)[0]


def global_kth_smallest(values: Var, k: int, least: float) -> Var:
    """The k-th smallest (k from 1) of all ranks' values, but at least `least`; all values at most 1."""
    # By bisection, as no rank sees another's values: 30 halvings leave no float32 between the bounds.
    low, high = jt.array([least], dtype="float32"), jt.ones((1,))
    for _ in range(30):
        middle = (low + high) * 0.5
        count = (values <= middle.broadcast(values)).int32().sum().reshape(1).mpi_all_reduce("add")
        low, high = jt.ternary(count >= k, low, middle), jt.ternary(count >= k, middle, high)
    return high
