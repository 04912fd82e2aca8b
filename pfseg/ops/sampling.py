"""Bilinear samples of maps at any places, with gradients for both.

Shapes: x (N, C, H, W) float32, places (N, P, 2) float32: column and row in pixels, 0 at the centre of the first; y
(N, C, P). Outside of the map there are zeros.
"""

from __future__ import annotations

from pfseg.ops import kernels
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


class _Sample(Function):
    def execute(self, x: Var, places: Var) -> Var:
        self.x, self.places = x, places
        shape = (*x.shape[:2], places.shape[1])
        return kernels.run_on_cpu("sampling_forward", [(shape, "float32")], [x, places])[0]

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        x, places = self.x, self.places
        outputs: list[kernels.Output] = [(x.shape, "float32")]
        (to_x,) = kernels.run_on_cpu("sampling_gradient_x", outputs, [upstream, places])
        outputs = [(places.shape, "float32")]
        (to_places,) = kernels.run_on_cpu("sampling_gradient_places", outputs, [upstream, x, places])
        return to_x, to_places


def sample(x: Var, places: Var) -> Var:
    """Values (N, C, P) of x (N, C, H, W) at places (N, P, 2)."""
    y: Var
    if not kernels.active():
        y = _Sample()(x, places)
        return y
    n, c, *_ = x.shape
    column, row = places[:, :, 0], places[:, :, 1]
    left, top = jt.floor(column).stop_grad(), jt.floor(row).stop_grad()
    right, down = column - left, row - top
    total = jt.zeros((1,))
    for i, vertical in enumerate((1.0 - down, down)):
        for j, horizontal in enumerate((1.0 - right, right)):
            at = [(top + i).int32(), (left + j).int32()]
            value = x.reindex([n, c, places.shape[1]], ["i0", "i1", "@e0(i0,i2)", "@e1(i0,i2)"], extras=at)
            total = total + value * (vertical * horizontal).broadcast(value, [1])
    return total


def nearest_labels(labels: Var, places: Var, outside: int) -> Var:
    """Labels (N, P) of (N, H, W) int32 at places (N, P, 2), halves to the even pixel; `outside` beyond the map."""
    at = [_round(places[:, :, 1]), _round(places[:, :, 0])]
    y: Var = labels.reindex(
        [labels.shape[0], places.shape[1]], ["i0", "@e0(i0,i1)", "@e1(i0,i1)"], extras=at, overflow_value=outside
    )
    return y


def _round(x: Var) -> Var:
    """The nearest whole number, int32, and of two the even one."""
    low, rest = jt.floor(x), x - jt.floor(x)
    odd = low - 2.0 * jt.floor(low / 2.0)
    up = jt.ternary(rest == 0.5, odd, (rest > 0.5).float32())
    return (low + up).int32()
