"""Operators that Jittor lacks, or computes differently from the published networks.

Shapes: N samples, C channels, (H, W) coarse map, (h, w) fine map, P points. Point indices are row-major positions
in a flattened map, int32.

Resizing with `align_corners=True` and average pooling are linear and separable: a matrix for the rows and one for the
columns (`_separable`), whose transposes give the gradient. A GPU multiplies by the full matrices; on a CPU one C++ loop
uses that each of their rows holds only a short range of weights.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.runtime import jt, rank, world_size

nn = jt.nn
Var = Any  # jittor.Var, which ships no types


@lru_cache(maxsize=256)
def _resize_matrix(size: int, out: int) -> np.ndarray:
    """Weights (out, size) float32 of linear interpolation with `align_corners=True`."""
    position = np.linspace(0.0, size - 1.0, out) if out > 1 else np.zeros(1)
    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    matrix = np.zeros((out, size), np.float32)
    rows = np.arange(out)
    matrix[rows, low] = 1.0 - (position - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += position - low
    return matrix


def pooling_windows(size: int, out: int, rule: str) -> list[tuple[int, int]]:
    """Windows `(start, stop)` of adaptive pooling from `size` to `out` cells.

    Args:
        size: length of the side.
        out: number of cells.
        rule: `floor_ceil` (PyTorch: cell i covers floor(i*size/out) to ceil((i+1)*size/out)) or `fixed_window`
            (Jittor: stride s = size // out, every window size - (out-1)*s wide).

    Raises:
        ValueError: `fixed_window` with fewer positions than cells.
    """
    if rule == "floor_ceil":
        return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
    if size < out:
        raise ValueError(
            f"a side of {size} cells can't be pooled to {out}: variant 'jittor' needs inputs of at least {32 * out} px "
            "a side for this; use a larger crop_size or variant 'pytorch' (config: dataset.crop_size, model.variant)"
        )
    stride = size // out
    return [(i * stride, i * stride + size - (out - 1) * stride) for i in range(out)]


@lru_cache(maxsize=256)
def _pool_matrix(size: int, out: int, rule: str) -> np.ndarray:
    """Weights (out, size) float32 of adaptive average pooling."""
    matrix = np.zeros((out, size), np.float32)
    for row, (start, stop) in enumerate(pooling_windows(size, out, rule)):
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


# in0 = x (N, C, H, W); in1 = weights (h, k) and in2 = starts (h,) of the rows, in3, in4 = the same of the columns.
_BANDED = """
    const int64 planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3;
    const int64 h = in1_shape0, hk = in1_shape1, w = in3_shape0, wk = in3_shape1;
    #pragma omp parallel
    {
        std::vector<float> line(W);
        #pragma omp for
        for (int64 p = 0; p < planes; p++)
            for (int64 i = 0; i < h; i++) {
                const float* x = in0_p + (p * H + in2_p[i]) * W;
                std::fill(line.begin(), line.end(), 0.0f);
                for (int64 k = 0; k < hk; k++) {
                    const float weight = in1_p[i * hk + k];
                    if (weight == 0) continue;
                    #pragma omp simd
                    for (int64 j = 0; j < W; j++) line[j] += weight * x[k * W + j];
                }
                float* y = out0_p + (p * h + i) * w;
                for (int64 j = 0; j < w; j++) {
                    const float* from = line.data() + in4_p[j];
                    const float* weight = in3_p + j * wk;
                    float sum = 0;
                    for (int64 k = 0; k < wk; k++) sum += weight[k] * from[k];
                    y[j] = sum;
                }
            }
    }
"""


def _band(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (out, k) and starts (out,) of a matrix (out, size) whose rows are 0 outside a short range."""
    filled = matrix != 0
    first = filled.argmax(1)
    last = matrix.shape[1] - 1 - filled[:, ::-1].argmax(1)
    width = int((last - first).max()) + 1
    starts = np.minimum(first, matrix.shape[1] - width)
    return np.take_along_axis(matrix, starts[:, None] + np.arange(width), 1), starts.astype(np.int32)


class _Separable(jt.Function):
    """`rows` and `columns` applied on a CPU; the gradient applies their transposes."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray) -> None:
        self.rows, self.columns = rows, columns

    def execute(self, x: Var) -> Var:
        return self._apply(x, self.rows, self.columns)

    def grad(self, upstream: Var) -> Var:
        return self._apply(upstream, self.rows.T, self.columns.T)

    @staticmethod
    def _apply(x: Var, rows: np.ndarray, columns: np.ndarray) -> Var:
        inputs = [x, *map(jt.array, (*_band(rows), *_band(columns)))]
        shape = (*x.shape[:2], rows.shape[0], columns.shape[0])
        return jt.code(
            shape, "float32", inputs, cpu_header="#include <algorithm>\n#include <vector>\n", cpu_src=_BANDED
        )


def _separable(x: Var, rows: np.ndarray, columns: np.ndarray) -> Var:
    """Apply `rows` (h, H) and `columns` (w, W) to the last two axes of (N, C, H, W), giving (N, C, h, w)."""
    if not jt.flags.use_cuda:
        return _Separable(rows, columns)(x)
    n, c, height, width = x.shape
    x = jt.matmul(x.reshape(n * c * height, width), jt.array(columns.T))  # (N*C*H, w)
    x = jt.matmul(jt.array(rows), x.reshape(n * c, height, columns.shape[0]))  # (N*C, h, w)
    return x.reshape(n, c, rows.shape[0], columns.shape[0])


def resize(x: Var, size: tuple[int, int]) -> Var:
    """Bilinear resize of (N, C, H, W) float32 to `size` = (h, w), `align_corners=True`."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return _separable(x, _resize_matrix(x.shape[2], size[0]), _resize_matrix(x.shape[3], size[1]))


def adaptive_avg_pool(x: Var, out: int, rule: str) -> Var:
    """Average pooling of (N, C, H, W) to (N, C, out, out) by `pooling_windows`."""
    return _separable(x, _pool_matrix(x.shape[2], out, rule), _pool_matrix(x.shape[3], out, rule))


@lru_cache(maxsize=64)
def _window_indices(height: int, width: int, out: int, rule: str) -> np.ndarray:
    """Flat positions (out*out, k) int32 of each pooling window, row by row, the last one repeated to length k."""
    windows = [
        [y * width + x for y in range(*rows) for x in range(*columns)]
        for rows in pooling_windows(height, out, rule)
        for columns in pooling_windows(width, out, rule)
    ]
    longest = max(map(len, windows))
    return np.array([w + w[-1:] * (longest - len(w)) for w in windows], np.int32)


def adaptive_max_pool(x: Var, out: int, rule: str) -> tuple[Var, Var]:
    """Max pooling of (N, 1, H, W) with the positions of the maxima.

    Returns:
        Values (N, 1, out, out), through which gradients flow, and flat positions (N, out*out) int32; of equal values
        the first in row-major order within the window.
    """
    n, _, height, width = x.shape
    indices = _window_indices(height, width, out, rule)
    cells, k = indices.shape
    with jt.no_grad():
        values = gather_points(x.reshape(n, 1, -1), jt.array(indices.reshape(-1)).broadcast([n, cells * k], [0]))
        values = values.reshape(n, cells, k)
        # The first maximum: the smallest offset among the entries equal to the maximum.
        offset = jt.array(np.arange(k, dtype=np.int32)).broadcast(values, [0, 1])
        first = jt.ternary(values >= values.max(2, keepdims=True), offset, jt.full_like(offset, k)).min(2)
        flat = jt.array(indices.reshape(-1)).reindex([n, cells], [f"i1*{k}+@e0(i0,i1)"], extras=[first.int32()])
    return gather_points(x.reshape(n, 1, -1), flat).reshape(n, 1, out, out), flat


def gather_points(x: Var, indices: Var) -> Var:
    """Pick `indices` (N, P) int32 out of (N, C, L), giving (N, C, P)."""
    n, c, _ = x.shape
    return x.reindex([n, c, indices.shape[1]], ["i0", "i1", "@e0(i0,i2)"], extras=[indices])


class _ScatterPoints(jt.Function):
    """Forward and gradient of `scatter_points`."""

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

    Gradients are those of PyTorch's `scatter`, which the published networks were trained with: `base` gets zero at
    every written position, and every point of `source` gets the full gradient of its position, also those that lost
    to a later one.
    """
    return _ScatterPoints.apply(base, source, indices)


def sample_points(x: Var, grid: tuple[int, int], indices: Var) -> Var:
    """Sample (N, C, h, w) bilinearly at the centres of cells of an (H, W) `grid` over the same area.

    The rule is `grid_sample(align_corners=False, padding zeros)`: cell j of W lies at (j + 0.5) * w / W - 0.5.

    Args:
        x: map (N, C, h, w) with h >= H and w >= W.
        grid: (H, W).
        indices: cells (N, P) int32 of the grid.

    Returns:
        (N, C, P). With h = 2H and w = 2W each value is the mean of a 2x2 block.
    """
    n, c, h, w = x.shape
    points = indices.shape[1]
    rows = _cell_positions(grid[0], h)
    columns = _cell_positions(grid[1], w)
    row, column = indices // grid[1], indices % grid[1]
    total = None
    for y_position, y_weight in rows:
        for x_position, x_weight in columns:
            y, y_share = _look_up(y_position, row), _look_up(y_weight, row)
            x_, x_share = _look_up(x_position, column), _look_up(x_weight, column)
            value = gather_points(x.reshape(n, c, h * w), y * w + x_)
            value = value * (y_share * x_share).broadcast([n, c, points], [1])
            total = value if total is None else total + value
    return total


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


def top_points(x: Var, count: int) -> Var:
    """Positions (N, min(count, H*W)) int32 of the largest entries of (N, 1, H, W)."""
    n = x.shape[0]
    flat = x.reshape(n, -1)
    order, _ = jt.argsort(flat, dim=1, descending=True)
    return order[:, : min(count, flat.shape[1])].int32()


class BatchNormReLU(BatchNorm2d):
    """`BatchNorm2d` whose ReLU is part of the same pass over memory (same parameter names)."""

    relu = True


class ConvNormReLU(jt.nn.Sequential):
    """3x3 convolution without bias, batch norm, ReLU: keys `0.weight`, `1.*`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Conv2d(in_channels, out_channels, 3, padding=1, bias=False), BatchNormReLU(out_channels))


class AdaptiveAvgPool(jt.nn.Module):
    """`adaptive_avg_pool` as a module without parameters."""

    def __init__(self, out: int, rule: str) -> None:
        super().__init__()
        self.out, self.rule = out, rule

    def execute(self, x: Var) -> Var:
        """Pool (N, C, H, W) to (N, C, out, out)."""
        return adaptive_avg_pool(x, self.out, self.rule)


class ChannelDropout(jt.nn.Module):
    """Zero whole channels with probability `p` in training mode and scale the others by 1 / (1 - p).

    The mask comes from `generator`, which the trainer sets anew for each step from (seed, step): a resumed run then
    drops what the undisturbed one would have dropped. It is drawn for the batches of all ranks, of which each takes
    its part: what is dropped doesn't depend on how ranks share the global batch.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator = np.random.default_rng(0)

    def execute(self, x: Var) -> Var:
        """Drop channels of (N, C, H, W)."""
        if self.p == 0.0 or not self.is_training():
            return x
        n, c = x.shape[:2]
        kept = self.generator.random((world_size() * n, c))[rank() * n :][:n] >= self.p
        return x * jt.array((kept / (1.0 - self.p)).astype(np.float32)).broadcast(x, [2, 3])
