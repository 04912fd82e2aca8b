"""Reading and writing features at points, which are row-major positions of cells in a flattened map, int32.

Shapes: N samples, C channels, P points; (H, W) a coarse map, (h, w) a fine one, L = h * w.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pfseg.runtime import Var, jt


def gather_points(x: Var, indices: Var) -> Var:
    """Pick `indices` (N, P) int32 out of (N, C, L), giving (N, C, P)."""
    n, c, _ = x.shape
    return x.reindex([n, c, indices.shape[1]], ["i0", "i1", "@e0(i0,i2)"], extras=[indices])


class _ScatterPoints(jt.Function):
    def execute(self, base: Var, source: Var, indices: Var) -> Var:
        n, c, length = base.shape
        order = jt.array(np.arange(1, indices.shape[1] + 1, dtype=np.int32)).broadcast(indices, [0])
        # (N, L): 1 + the last p that writes there, 0 where nobody does
        self.writer = order.reindex_reduce("maximum", [n, length], ["i0", "@e0(i0,i1)"], extras=[indices]).maximum(0)
        self.indices = indices
        written = source.reindex([n, c, length], ["i0", "i1", "@e0(i0,i2)-1"], extras=[self.writer], overflow_value=0.0)
        return jt.ternary(self.writer.broadcast(base, [1]) > 0, written, base)

    def grad(self, upstream: Var) -> tuple[Var, Var, None]:
        written = self.writer.broadcast(upstream, [1]) > 0
        base = jt.ternary(written, jt.zeros_like(upstream), upstream)
        return base, gather_points(upstream, self.indices), None


def scatter_points(base: Var, source: Var, indices: Var) -> Var:
    """Write `source` (N, C, P) over `base` (N, C, L) at `indices` (N, P) int32; the last of equal indices wins.

    Gradients are those of PyTorch's `scatter`, as in the published training: `base` gets zero at every written
    position, every point of `source` the full gradient of its position, also those that lost to a later one.
    """
    merged: Var = _ScatterPoints.apply(base, source, indices)
    return merged


def sample_points(x: Var, grid: tuple[int, int], indices: Var) -> Var:
    """Sample (N, C, h, w) bilinearly at `indices` (N, P) int32 of cells of an (H, W) `grid` over it; gives (N, C, P).

    The rule is `grid_sample(align_corners=False, padding zeros)`: cell j of W lies at (j + 0.5) * w / W - 0.5. With h =
    2H and w = 2W each value is the mean of a 2x2 block.
    """
    n, c, h, w = x.shape
    points = indices.shape[1]
    row, column = indices // grid[1], indices % grid[1]
    corners = []
    for y_position, y_weight in _cell_positions(grid[0], h):
        for x_position, x_weight in _cell_positions(grid[1], w):
            cell = _look_up(y_position, row) * w + _look_up(x_position, column)
            weight = _look_up(y_weight, row) * _look_up(x_weight, column)
            corners.append(gather_points(x.reshape(n, c, h * w), cell) * weight.broadcast([n, c, points], [1]))
    first, second, third, fourth = corners
    return first + second + third + fourth


@lru_cache(maxsize=64)
def _cell_positions(cells: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For each of `cells` centres on an axis of `size`: the two neighbours (int32) and their weights (float32)."""
    position = (np.arange(cells) + 0.5) * size / cells - 0.5
    low = np.floor(position).astype(np.int32)
    neighbours = []
    for index, weight in ((low, 1.0 - (position - low)), (low + 1, position - low)):
        inside = (index >= 0) & (index < size)
        neighbours.append((np.clip(index, 0, size - 1), np.where(inside, weight, 0.0).astype(np.float32)))
    return tuple(neighbours)


def _look_up(table: np.ndarray, indices: Var) -> Var:
    """`table[indices]` for a one-dimensional constant table and (N, P) indices."""
    return jt.array(table).reindex(list(indices.shape), ["@e0(i0,i1)"], extras=[indices])
