"""Reading and writing features at points, which are row-major positions of cells in a flattened map, int32.

Shapes: N samples, C channels, P points; (H, W) a coarse map, (h, w) a fine one, L = h * w. A cell of the coarse map
lies in the fine map at (floor(y * h / H), floor(x * w / W)): multiplying the flat index first, as the published code
does, lands on wrong rows unless h = 2H and w = 2W.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pfseg.ops import kernels, maps
from pfseg.ops.convolution import batched_matmul
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt


def gather_points(x: Var, indices: Var) -> Var:
    """Pick `indices` (N, P) int32 out of (N, C, L), giving (N, C, P)."""
    n, c, _ = x.shape
    return x.reindex([n, c, indices.shape[1]], ["i0", "i1", "@e0(i0,i2)"], extras=[indices])


class _ScatterPoints(Function):
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
    for y_position, y_weight in cell_positions(grid[0], h):
        for x_position, x_weight in cell_positions(grid[1], w):
            cell = _look_up(y_position, row) * w + _look_up(x_position, column)
            weight = _look_up(y_weight, row) * _look_up(x_weight, column)
            corners.append(gather_points(x.reshape(n, c, h * w), cell) * weight.broadcast([n, c, points], [1]))
    first, second, third, fourth = corners
    return first + second + third + fourth


@lru_cache(maxsize=64)
def cell_positions(cells: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
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


def flow_points(coarse: Var, fine: Var, boundary: Var | None, salient: tuple[Var, Var] | None) -> Var:
    """Let features flow at points from the coarse maps to the fine ones; gives the fine maps with the points written.

    Points are cells of the coarse map, (N, P) int32. Those of `boundary` have the features of the coarse map and of
    samples of the fine one (`sample_points`); the salient ones, given with a factor (N, 1, H, W) float32, those of
    coarse * (1 + factor) and of the fine cell. Each fine point receives all coarse points of its kind by softmax
    affinity. The salient points are written last, see `scatter_points`. None leaves a kind out.
    """
    if kernels.maps_last():
        coarse, _ = maps.enter(coarse)
        fine, back = maps.enter(fine)
        points = [*([boundary] if boundary is not None else []), *(salient or ())]
        return back(_Flow(boundary, salient)(coarse, fine, *points)) if points else back(fine)
    n, c, height, width = coarse.shape
    h, w = fine.shape[2:]
    flat = fine.reshape(n, c, h * w)
    flows: list[tuple[Var, Var]] = []
    if boundary is not None:
        edge_coarse = gather_points(coarse.reshape(n, c, -1), boundary)
        edge_fine = sample_points(fine, (height, width), boundary)
        flows.append((_fuse(edge_coarse, edge_fine), _fine_cells(boundary, (height, width), (h, w))))
    if salient is not None:
        maxima, factor = salient
        salient_coarse = gather_points(maps.modulate(coarse, factor, 1.0).reshape(n, c, -1), maxima)
        target = _fine_cells(maxima, (height, width), (h, w))
        flows.append((_fuse(salient_coarse, gather_points(flat, target)), target))
    for values, target in flows:
        flat = scatter_points(flat, values, target)
    return flat.reshape(n, c, h, w)


def _fuse(coarse: Var, fine: Var) -> Var:
    """Fuse points (N, C, P) of both maps: each fine point receives all coarse points by softmax affinity."""
    affinity = jt.nn.softmax(batched_matmul(fine.transpose(0, 2, 1), coarse), dim=2)  # (N, P, P), [fine, coarse]
    return batched_matmul(coarse, affinity.transpose(0, 2, 1)) + fine  # (N, C, P)


def _fine_cells(indices: Var, coarse: tuple[int, int], fine: tuple[int, int]) -> Var:
    """Flat positions (N, P) in the fine map of coarse cells (N, P)."""
    row, column = indices // coarse[1], indices % coarse[1]
    return row * fine[0] // coarse[0] * fine[1] + column * fine[1] // coarse[1]


class _Flow(Function):
    """`flow_points` on the GPU kernels (`cuda/points.cu`)."""

    def __init__(self, boundary: Var | None, salient: tuple[Var, Var] | None) -> None:
        self.edges = 0 if boundary is None else boundary.shape[1]
        self.salient = 0 if salient is None else salient[0].shape[1]
        self.counts = {"boundary": self.edges, "salient": self.salient}

    def execute(self, coarse: Var, fine: Var, *points: Var) -> Var:
        n, _, _, channels = coarse.shape
        count = self.edges + self.salient
        self.features = ((n, count, channels), "float32")
        self.scores = ((n, count, max(self.edges, self.salient)), "float32")
        cells = [((n, 2 * count + 4 * self.edges), kind) for kind in ("int32", "float32", "int32", "uint8")]
        outputs = [(fine.shape, fine.dtype), self.features, self.features, self.scores, *cells]
        out, *self.saved = kernels.run("points_flow", outputs, [coarse, fine, *points], **self.counts)
        self.coarse = coarse
        return out

    def grad(self, upstream: Var) -> tuple[Var | None, ...]:
        n, height, width, _ = self.coarse.shape
        outputs = [(x.shape, x.dtype) for x in (self.coarse, upstream)]
        outputs += [((n, 1, height, width), "float32")] if self.salient else []
        scratch = [self.features, self.features, self.features, self.scores]
        inputs = [upstream, self.coarse, *self.saved]
        to = kernels.run("points_flow_gradient", [*outputs, *scratch], inputs, **self.counts)
        to_points = [*([None] if self.edges else []), *([None, to[2]] if self.salient else [])]
        return to[0], to[1], *to_points
