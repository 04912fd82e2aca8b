"""Resizing and adaptive pooling as the published networks have them, from (N, C, H, W) to (N, C, h, w).

Both are linear and separable: a matrix for the rows and one for the columns (`_separable`), whose transposes give the
gradient. A GPU multiplies by the full matrices; on a CPU one C++ loop (`resampling.h`) uses that their rows are sparse.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pfseg.ops import header
from pfseg.ops.points import gather_points
from pfseg.runtime import Var, jt


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
    """Windows `(start, stop)` of adaptive pooling of a side from `size` to `out` cells.

    The rule is `floor_ceil` (PyTorch: cell i covers floor(i*size/out) to ceil((i+1)*size/out)) or `fixed_window`
    (Jittor: stride s = size // out, every window size - (out-1)*s wide), which raises ValueError for fewer positions
    than cells.
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
        bands = "{in1_shape0, in1_shape1, in1_p, in2_p}, {in3_shape0, in3_shape1, in3_p, in4_p}"
        call = f"pfseg::resample(in0_shape0 * in0_shape1, in0_shape2, in0_shape3, in0_p, {bands}, out0_p);"
        return jt.code(shape, "float32", inputs, cpu_header=header("resampling"), cpu_src=call)


def _separable(x: Var, rows: np.ndarray, columns: np.ndarray) -> Var:
    """Apply `rows` (h, H) and `columns` (w, W) to the last two axes of (N, C, H, W), giving (N, C, h, w)."""
    if not jt.flags.use_cuda:
        y: Var = _Separable(rows, columns)(x)
        return y
    n, c, height, width = x.shape
    x = jt.matmul(x.reshape(n * c * height, width), jt.array(columns.T))  # (N*C*H, w)
    x = jt.matmul(jt.array(rows), x.reshape(n * c, height, columns.shape[0]))  # (N*C, h, w)
    return x.reshape(n, c, rows.shape[0], columns.shape[0])


def resize(x: Var, size: Sequence[int]) -> Var:
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

    Gives values (N, 1, out, out), through which gradients flow, and flat positions (N, out*out) int32; of equal values
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
