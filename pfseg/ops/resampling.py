"""Resizing and adaptive pooling as the published networks have them.

Both are linear and separable: a matrix for the rows and one for the columns, whose transposes give the gradient. Their
rows are sparse, which the C++ loop of a CPU (`cpu/resampling.cc`) and the GPU kernels (`cuda/resampling.cu`) make use
of.

The layout of maps is that of `pfseg.ops.maps`: (N, C, H, W) float32, or (N, H, W, C) in `channels_last()` on a GPU.
Planes, as a map of certainties, are (N, 1, H, W) float32 on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.ops.points import gather_points
from pfseg.runtime import Var, jt


@lru_cache(maxsize=256)
def _resize_matrix(size: int, out: int, align_corners: bool = True) -> np.ndarray:
    """Weights (out, size) float32 of linear interpolation."""
    if align_corners:
        position = np.linspace(0.0, size - 1.0, out) if out > 1 else np.zeros(1)
    else:
        position = ((np.arange(out) + 0.5) * size / out - 0.5).clip(0.0, size - 1.0)
    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    matrix = np.zeros((out, size), np.float32)
    rows = np.arange(out)
    matrix[rows, low] = 1.0 - (position - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += position - low
    return matrix


@lru_cache(maxsize=256)
def _nearest_matrix(size: int, out: int) -> np.ndarray:
    """Weights (out, size) float32 of nearest-neighbour resizing."""
    matrix = np.zeros((out, size), np.float32)
    matrix[np.arange(out), np.arange(out) * size // out] = 1.0
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
def pool_matrix(size: int, out: int, rule: str) -> np.ndarray:
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


class _Separable(Function):
    """`rows` and `columns` applied on a CPU, to (N, C, H, W) if `planar`; the gradient applies their transposes."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, planar: bool) -> None:
        self.rows, self.columns, self.planar = rows, columns, planar

    def execute(self, x: Var) -> Var:
        return self._apply(x, self.rows, self.columns)

    def grad(self, upstream: Var) -> Var:
        return self._apply(upstream, self.rows.T, self.columns.T)

    def _apply(self, x: Var, rows: np.ndarray, columns: np.ndarray) -> Var:
        inputs = [x, *map(jt.array, (*_band(rows), *_band(columns)))]
        sides = rows.shape[0], columns.shape[0]
        if self.planar:
            return kernels.run_on_cpu("resampling_separable", [((*x.shape[:2], *sides), "float32")], inputs)[0]
        shape = (x.shape[0], *sides, x.shape[3])
        return kernels.run_on_cpu("last_resampling_separable", [(shape, x.dtype)], inputs)[0]


class _Resampled(Function):
    """Resizing or average pooling to `size` on the GPU kernels, of maps, or of (N, C, H, W) if `planar`."""

    def __init__(self, kernel: str, size: Sequence[int], planar: bool, **options: float) -> None:
        self.kernel, self.size = kernel, tuple(size)
        self.options = {"planar": planar, **options}

    def execute(self, x: Var) -> Var:
        self.shape = n, *_, channels = tuple(x.shape)
        shape = (n, self.shape[1], *self.size) if self.options["planar"] else (n, *self.size, channels)
        return kernels.run(self.kernel, [(shape, x.dtype)], [x], **self.options)[0]

    def grad(self, upstream: Var) -> Var:
        outputs = [(self.shape, upstream.dtype)]
        return kernels.run(f"{self.kernel}_gradient", outputs, [upstream], **self.options)[0]


class _ResizedToImages(Function):
    """Maps (N, h, w, C) to images (N, C, H, W) float32 on the GPU kernels."""

    def __init__(self, size: Sequence[int], align_corners: bool) -> None:
        self.size, self.align_corners = tuple(size), align_corners

    def execute(self, x: Var) -> Var:
        self.shape, self.dtype = x.shape, x.dtype
        shape = (self.shape[0], self.shape[3], *self.size)
        options = {"align_corners": self.align_corners}
        return kernels.run("resample_to_images", [(shape, "float32")], [x], **options)[0]

    def grad(self, upstream: Var) -> Var:
        outputs, options = [(self.shape, self.dtype)], {"align_corners": self.align_corners}
        return kernels.run("resample_to_images_gradient", outputs, [upstream], **options)[0]


class _Maxima(Function):
    """Maxima of adaptive pooling and their positions on the GPU kernels; see `adaptive_max_pool`."""

    def __init__(self, out: int, rule: str) -> None:
        self.out, self.fixed = out, rule == "fixed_window"

    def execute(self, x: Var) -> tuple[Var, Var]:
        self.shape, out = x.shape, self.out
        outputs = [((self.shape[0], 1, out, out), "float32"), ((self.shape[0], out * out), "int32")]
        values, self.flat = kernels.run("resample_max", outputs, [x], planar=True, fixed=self.fixed)
        return values, self.flat

    def grad(self, upstream: Var, _flat: Var) -> Var:
        outputs, inputs = [(self.shape, "float32")], [upstream, self.flat]
        return kernels.run("resample_max_gradient", outputs, inputs, planar=True, fixed=self.fixed)[0]


def resize(x: Var, size: Sequence[int], align_corners: bool = True) -> Var:
    """Bilinear resize of maps to `size` = (h, w).

    With `align_corners` the centres of the corner pixels stay where they are, without it the map's edges do.
    """
    return _resize(x, size, align_corners, planar=not maps.is_last())


def plane_resize(x: Var, size: Sequence[int]) -> Var:
    """Bilinear resize of planes to `size` = (h, w), `align_corners=True`."""
    return _resize(x, size, True, planar=True)


def _resize(x: Var, size: Sequence[int], align_corners: bool, planar: bool) -> Var:
    height, width = x.shape[2:4] if planar else x.shape[1:3]
    if (height, width) == tuple(size):
        return x
    y: Var
    if kernels.active():
        y = _Resampled("resample_resize", size, planar, align_corners=align_corners)(x)
    else:
        rows, columns = (
            _resize_matrix(side, out, align_corners) for side, out in ((height, size[0]), (width, size[1]))
        )
        y = _Separable(rows, columns, planar)(x)
    return y


def resize_nearest(x: Var, size: Sequence[int]) -> Var:
    """Maps resized to `size` = (h, w): position i of a side takes floor(i * old / new)."""
    planar = not maps.is_last()
    height, width = maps.size(x)
    y: Var
    if kernels.active():
        y = _Resampled("resample_nearest", size, planar)(x)
    else:
        y = _Separable(_nearest_matrix(height, size[0]), _nearest_matrix(width, size[1]), planar)(x)
    return y


def resize_to_image(x: Var, size: Sequence[int], align_corners: bool = True) -> Var:
    """Bilinear resize of maps to images (N, C, *size) float32 on every device; see `resize`."""
    if not maps.is_last():
        return resize(x, size, align_corners)
    if not kernels.active():
        return _resize(maps.to_first(x), size, align_corners, planar=True)
    y: Var = _ResizedToImages(size, align_corners)(x)
    return y


def adaptive_avg_pool(x: Var, out: int, rule: str) -> Var:
    """Average pooling of maps to (out, out) by `pooling_windows`."""
    return _average(x, out, rule, planar=not maps.is_last())


def plane_avg_pool(x: Var, out: int, rule: str) -> Var:
    """Average pooling of planes to (N, 1, out, out) by `pooling_windows`."""
    return _average(x, out, rule, planar=True)


def _average(x: Var, out: int, rule: str, planar: bool) -> Var:
    height, width = x.shape[2:4] if planar else x.shape[1:3]
    y: Var
    if kernels.active():
        _check_windows(height, width, out, rule)
        y = _Resampled("resample_average", (out, out), planar, fixed=rule == "fixed_window")(x)
    else:
        y = _Separable(pool_matrix(height, out, rule), pool_matrix(width, out, rule), planar)(x)
    return y


def _check_windows(height: int, width: int, out: int, rule: str) -> None:
    """ValueError if `pooling_windows` has none for the sides."""
    pooling_windows(min(height, width), out, rule)


@lru_cache(maxsize=64)
def window_indices(height: int, width: int, out: int, rule: str) -> np.ndarray:
    """Flat positions (out*out, k) int32 of each pooling window, row by row, the last one repeated to length k."""
    windows = [
        [y * width + x for y in range(*rows) for x in range(*columns)]
        for rows in pooling_windows(height, out, rule)
        for columns in pooling_windows(width, out, rule)
    ]
    longest = max(map(len, windows))
    return np.array([w + w[-1:] * (longest - len(w)) for w in windows], np.int32)


def adaptive_max_pool(x: Var, out: int, rule: str) -> tuple[Var, Var]:
    """Max pooling of planes with the positions of the maxima.

    Gives values (N, 1, out, out), through which gradients flow, and flat positions (N, out*out) int32; of equal values
    the first in row-major order within the window.
    """
    n, _, height, width = x.shape
    if kernels.active():
        _check_windows(height, width, out, rule)
        values, flat = _Maxima(out, rule)(x)
        return values, flat
    indices = window_indices(height, width, out, rule)
    cells, k = indices.shape
    with jt.no_grad():
        values = gather_points(x.reshape(n, 1, -1), jt.array(indices.reshape(-1)).broadcast([n, cells * k], [0]))
        values = values.reshape(n, cells, k)
        # The first maximum: the smallest offset among the entries equal to the maximum.
        offset = jt.array(np.arange(k, dtype=np.int32)).broadcast(values, [0, 1])
        first = jt.ternary(values >= values.max(2, keepdims=True), offset, jt.full_like(offset, k)).min(2)
        flat = jt.array(indices.reshape(-1)).reindex([n, cells], [f"i1*{k}+@e0(i0,i1)"], extras=[first.int32()])
    return gather_points(x.reshape(n, 1, -1), flat).reshape(n, 1, out, out), flat
