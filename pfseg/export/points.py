"""PointFlow in ONNX: points are found, gathered, matched and written as `pfseg.ops.points` does.

Shapes, without the batch axis: coarse (C, H, W), fine (C, h, w), P points; positions (P,) int64 in a flattened map.
"""

from __future__ import annotations

import numpy as np

from pfseg.export.graph import Graph, Translator, Value
from pfseg.export.layers import adaptive_average, concat, reshape, resize
from pfseg.models.pointflow import PointFlow, PointMatcher
from pfseg.ops.points import cell_positions
from pfseg.ops.resampling import window_indices


def point_matcher(graph: Graph, module: PointMatcher, coarse: Value, fine: Value) -> Value:
    """Certainty (1, H, W)."""
    both = concat(graph, [coarse, resize(graph, fine, coarse.shape[1:])])
    logits = graph.call(module.match_conv, both)
    # As Jittor computes it: where it is 0 or 1 up to rounding there are equal maxima, of which the first counts. ONNX
    # Runtime's own Sigmoid has neither the bound nor the same rounding, and so finds other ones.
    bound, one = (np.full((1, 1, 1, 1), value, np.float32) for value in (-30, 1))
    inverse = graph.add("Exp", graph.add("Neg", graph.add("Max", logits, bound)))
    return graph.add("Reciprocal", graph.add("Add", inverse, one))


def point_flow(graph: Graph, module: PointFlow, coarse: Value, fine: Value) -> Value:
    """The fine map with the points written over it; the edge logits only choose points here."""
    size = coarse.shape[1:]
    reduced = graph.call(module.down_h, coarse), graph.call(module.down_l, fine)
    certainty = graph.call(module.point_matcher, *reduced)
    flat = flatten(graph, fine)
    if module.num_edge_points:
        average = resize(graph, adaptive_average(graph, certainty, module.edge_pool, module.pooling), size)
        body = graph.add("Sub", coarse, graph.add("Mul", coarse, average))
        points = top(graph, graph.call(module.edge_final, body), module.num_edge_points)
        samples = sample(graph, fine, points, size)
        boundary = _fuse(graph, gather(graph, flatten(graph, coarse), points), samples), points
        # Written below, as the salient points read the fine map as it was.
    if module.salient_pool:
        maxima, points = _adaptive_max(graph, certainty, module.salient_pool, module.pooling)
        factor = resize(graph, maxima, size)
        raised = graph.add("Add", coarse, graph.add("Mul", coarse, factor))
        cells = _fine_cells(graph, points, size, fine.shape[1:])
        fused = _fuse(graph, gather(graph, flatten(graph, raised), points), gather(graph, flat, cells))
    if module.num_edge_points:
        cells_of_edges = _fine_cells(graph, boundary[1], size, fine.shape[1:])
        flat = scatter(graph, flat, boundary[0], cells_of_edges, unique=size <= fine.shape[1:])
    if module.salient_pool:
        flat = scatter(graph, flat, fused, cells)
    return reshape(graph, flat, fine.shape)


def flatten(graph: Graph, x: Value) -> Value:
    """(C, H * W) of maps."""
    return reshape(graph, x, (x.shape[0], x.shape[1] * x.shape[2]))


def top(graph: Graph, x: Value, count: int) -> Value:
    """Positions of the largest entries of (1, H, W), at most all of them."""
    cells = x.shape[1] * x.shape[2]
    count = min(count, cells)
    flat = reshape(graph, x, (cells,))
    return graph.add_many("TopK", [flat, np.array([count])], [(count,), (count,)], axis=1, sorted=0)[1]


def _look_up(graph: Graph, table: np.ndarray, positions: Value) -> Value:
    """`table[positions]` for a one-dimensional constant table."""
    return graph.add("Gather", table, positions, shape=positions.shape)


def gather(graph: Graph, x: Value, positions: Value) -> Value:
    """(C, P) of (C, L)."""
    spread = _spread(graph, positions, x.shape[0])
    return graph.add("GatherElements", x, spread, shape=spread.shape, axis=2)


def _spread(graph: Graph, positions: Value, channels: int) -> Value:
    """Positions (P,) for each channel, (C, P)."""
    row = reshape(graph, positions, (1, *positions.shape))
    return graph.add("Expand", row, np.array([1, channels, 1], np.int64), shape=(channels, *positions.shape))


def scatter(graph: Graph, base: Value, source: Value, positions: Value, *, unique: bool = False) -> Value:
    """Write (C, P) over (C, L); of equal positions, which there are none of if `unique`, the last wins.

    ONNX leaves open which one wins, so each point first gets the features of the last one at its position.
    """
    if not unique:
        source = _settled(graph, source, positions)
    return graph.add("ScatterElements", base, _spread(graph, positions, base.shape[0]), source, axis=2)


def _settled(graph: Graph, source: Value, positions: Value) -> Value:
    """For each of the points (C, P) the last one at its position."""
    (count,) = positions.shape
    pairs = graph.add(
        "Equal", reshape(graph, positions, (count, 1)), reshape(graph, positions, (1, count)), shape=(count, count)
    )
    same = graph.add("Cast", pairs, to=1)
    last = graph.add("ArgMax", same, shape=(count,), axis=2, keepdims=0, select_last_index=1)
    return gather(graph, source, last)


def _fine_cells(graph: Graph, positions: Value, coarse: tuple[int, ...], fine: tuple[int, ...]) -> Value:
    """Positions in the fine map of cells of the coarse one."""
    rows, columns = (np.arange(cells) * side // cells for cells, side in zip(coarse, fine, strict=True))
    return _look_up(graph, (rows[:, None] * fine[1] + columns).ravel(), positions)


def sample(graph: Graph, x: Value, positions: Value, grid: tuple[int, ...]) -> Value:
    """Bilinear samples (C, P) of (C, h, w) at cells of an (H, W) grid over it; see `sample_points`."""
    flat, (_, height, width) = flatten(graph, x), x.shape
    total: Value | None = None
    for y_position, y_weight in cell_positions(grid[0], height):
        for x_position, x_weight in cell_positions(grid[1], width):
            cells = (y_position[:, None].astype(np.int64) * width + x_position).ravel()
            weights = _look_up(graph, np.outer(y_weight, x_weight).ravel(), positions)
            corner = gather(graph, flat, _look_up(graph, cells, positions))
            part = graph.add("Mul", corner, reshape(graph, weights, (1, *positions.shape)))
            total = part if total is None else graph.add("Add", total, part)
    assert total is not None
    return total


def _adaptive_max(graph: Graph, x: Value, out: int, rule: str) -> tuple[Value, Value]:
    """Maxima (1, out, out) of (1, H, W), and their positions (out * out,), the first of equal values."""
    _, height, width = x.shape
    windows = window_indices(height, width, out, rule).astype(np.int64)
    cells, longest = windows.shape
    flat = reshape(graph, x, (height * width,))
    values = graph.add("Gather", flat, windows, shape=windows.shape, axis=1)
    offset = graph.add("ArgMax", values, shape=(cells,), axis=2, keepdims=0, select_last_index=0)
    place = graph.add("Add", offset, np.arange(cells) * longest)
    positions = _look_up(graph, windows.ravel(), place)
    maxima = graph.add("ReduceMax", values, shape=(cells,), axes=[2], keepdims=0)
    return reshape(graph, maxima, (1, out, out)), positions


def _fuse(graph: Graph, coarse: Value, fine: Value) -> Value:
    """Fuse points (C, P) of both maps: each fine point receives all coarse points by softmax affinity."""
    channels, count = coarse.shape
    rows = graph.add("Transpose", fine, shape=(count, channels), perm=[0, 2, 1])
    affinity = graph.add("Softmax", graph.add("MatMul", rows, coarse, shape=(count, count)), axis=2)
    back = graph.add("Transpose", affinity, perm=[0, 2, 1])
    return graph.add("Add", graph.add("MatMul", coarse, back, shape=coarse.shape), fine)


TRANSLATORS: dict[type, Translator] = {PointMatcher: point_matcher, PointFlow: point_flow}
