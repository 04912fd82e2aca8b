"""Batch normalisation by PyTorch's definition, synchronised over ranks.

Jittor's own takes the variance as E[x²] - E[x]², which loses the deviation of inputs far from zero, stores the biased
variance, and runs several passes over memory. Here the variance is taken around the mean, the running variance is
unbiased, and on a CPU the statistics, the normalisation and the ReLU that often follows are one C++ loop each.

Shapes: x (N, C, H, W) float32; everything per channel (C,).
"""

from __future__ import annotations

from typing import Any

from pfseg.runtime import jt, world_size

Var = Any  # jittor.Var, which ships no types

_HEADER = "#include <cmath>\n#include <omp.h>\n"

# in0 = x; out0 = mean, out1 = biased variance. Double sums over planes, float sums (vectorised) within one.
_MOMENTS = """
    const int64 N = in0_shape0, C = in0_shape1, L = in0_shape2 * in0_shape3;
    #pragma omp parallel for
    for (int64 c = 0; c < C; c++) {
        double total = 0;
        for (int64 n = 0; n < N; n++) {
            const float* x = in0_p + (n * C + c) * L;
            float s = 0;
            #pragma omp simd reduction(+:s)
            for (int64 i = 0; i < L; i++) s += x[i];
            total += s;
        }
        const float mean = total / (N * L);
        double square = 0;
        for (int64 n = 0; n < N; n++) {
            const float* x = in0_p + (n * C + c) * L;
            float s = 0;
            #pragma omp simd reduction(+:s)
            for (int64 i = 0; i < L; i++) { const float d = x[i] - mean; s += d * d; }
            square += s;
        }
        out0_p[c] = mean;
        out1_p[c] = square / (N * L);
    }
"""

# in0 = x, in1 = mean, in2 = scale (weight / deviation), in3 = bias.
_NORMALISE = """
    const int64 N = in0_shape0, C = in0_shape1, L = in0_shape2 * in0_shape3;
    #pragma omp parallel for collapse(2)
    for (int64 n = 0; n < N; n++)
        for (int64 c = 0; c < C; c++) {
            const float* x = in0_p + (n * C + c) * L;
            float* y = out0_p + (n * C + c) * L;
            const float mean = in1_p[c], scale = in2_p[c], bias = in3_p[c];
            #pragma omp simd
            for (int64 i = 0; i < L; i++) {
                const float v = (x[i] - mean) * scale + bias;
                y[i] = FLOOR;
            }
        }
"""

# in0 = x, in1 = upstream, in2 = mean, in3 = scale, in4 = bias; out0 = sum(g), out1 = sum(g * (x - mean)).
_GRADIENT_SUMS = """
    const int64 N = in0_shape0, C = in0_shape1, L = in0_shape2 * in0_shape3;
    #pragma omp parallel for
    for (int64 c = 0; c < C; c++) {
        const float mean = in2_p[c], scale = in3_p[c], bias = in4_p[c];
        double sum = 0, product = 0;
        for (int64 n = 0; n < N; n++) {
            const float* x = in0_p + (n * C + c) * L;
            const float* u = in1_p + (n * C + c) * L;
            float s = 0, p = 0;
            #pragma omp simd reduction(+:s,p)
            for (int64 i = 0; i < L; i++) {
                const float d = x[i] - mean;
                const float v = d * scale + bias;
                const float g = MASK;
                s += g;
                p += g * d;
            }
            sum += s;
            product += p;
        }
        out0_p[c] = sum;
        out1_p[c] = product;
    }
"""

# in5 = a, in6 = b per channel: gradient = scale * (g - a - (x - mean) * b).
_GRADIENT = """
    const int64 N = in0_shape0, C = in0_shape1, L = in0_shape2 * in0_shape3;
    #pragma omp parallel for collapse(2)
    for (int64 n = 0; n < N; n++)
        for (int64 c = 0; c < C; c++) {
            const float* x = in0_p + (n * C + c) * L;
            const float* u = in1_p + (n * C + c) * L;
            float* y = out0_p + (n * C + c) * L;
            const float mean = in2_p[c], scale = in3_p[c], bias = in4_p[c], a = in5_p[c], b = in6_p[c];
            #pragma omp simd
            for (int64 i = 0; i < L; i++) {
                const float d = x[i] - mean;
                const float v = d * scale + bias;
                const float g = MASK;
                y[i] = scale * (g - a - d * b);
            }
        }
"""


def _code(source: str, relu: bool) -> str:
    return source.replace("FLOOR", "v > 0 ? v : 0" if relu else "v").replace(
        "MASK", "v > 0 ? u[i] : 0" if relu else "u[i]"
    )


class _Normalise(jt.Function):
    """Training-mode normalisation on a CPU; returns (y, mean, biased variance over all ranks)."""

    def __init__(self, eps: float, relu: bool, sync: bool) -> None:
        self.eps, self.relu, self.sync = eps, relu, sync

    def execute(self, x: Var, weight: Var, bias: Var) -> tuple[Var, Var, Var]:
        c = x.shape[1]
        mean, var = jt.code([(c,), (c,)], ["float32", "float32"], [x], cpu_header=_HEADER, cpu_src=_MOMENTS)
        if self.sync:
            mean, var = _over_ranks(mean, var)
        self.inverse = 1.0 / jt.sqrt(var + self.eps)
        self.x, self.mean, self.scale, self.bias = x, mean, weight * self.inverse, bias
        y = jt.code(
            x.shape, "float32", [x, mean, self.scale, bias], cpu_header=_HEADER, cpu_src=_code(_NORMALISE, self.relu)
        )
        return y, mean, var

    def grad(self, upstream: Var, _mean: Var, _var: Var) -> tuple[Var, Var, Var]:
        n, c, height, width = self.x.shape
        inputs = [self.x, upstream, self.mean, self.scale, self.bias]
        total, product = jt.code(
            [(c,), (c,)],
            ["float32", "float32"],
            inputs,
            cpu_header=_HEADER,
            cpu_src=_code(_GRADIENT_SUMS, self.relu),
        )
        weight_grad, bias_grad = product * self.inverse, total
        count = n * height * width
        if self.sync:
            sums = jt.concat([total, product]).mpi_all_reduce("mean")
            total, product = sums[:c], sums[c:]
        inputs += [total / count, product * self.inverse * self.inverse / count]
        x_grad = jt.code(self.x.shape, "float32", inputs, cpu_header=_HEADER, cpu_src=_code(_GRADIENT, self.relu))
        return x_grad, weight_grad, bias_grad


def _over_ranks(mean: Var, var: Var) -> tuple[Var, Var]:
    """Moments over all ranks from each rank's own, for equally many values on each: batches are whole."""
    total = mean.mpi_all_reduce("mean")
    var = (var + (mean - total) * (mean - total)).mpi_all_reduce("mean")
    return total, var


class BatchNorm2d(jt.nn.Module):
    """Batch normalisation over (N, C, H, W) float32 as PyTorch defines it.

    Training mode normalises by the batch's own moments (over all ranks with `sync`) and moves the running ones;
    evaluation mode and `freeze()` use the running ones, and `freeze()` outlasts later calls of `train()`.

    Attributes:
        weight, bias, running_mean, running_var: (C,) float32; `running_var` is unbiased.
        momentum: share of the new value in the running one; None for a plain average over all batches since
            `reset_running_stats` (used to re-estimate the statistics).
    """

    relu = False

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.momentum: float | None = momentum
        self.sync = sync
        self.frozen = self.folded = False
        self.batches_seen = 0
        self.weight = jt.ones((num_features,))
        self.bias = jt.zeros((num_features,))
        self.running_mean = jt.zeros((num_features,)).stop_grad()
        self.running_var = jt.ones((num_features,)).stop_grad()

    def freeze(self) -> None:
        """Use the running statistics from now on, also in training mode."""
        self.frozen = True

    def fold(self) -> None:
        """Leave normalising to the convolution before, whose weights hold it from now on; see `inference.folding`."""
        self.folded = True

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, no batch seen."""
        self.running_mean.assign(jt.zeros_like(self.running_mean))
        self.running_var.assign(jt.ones_like(self.running_var))
        self.batches_seen = 0

    def execute(self, x: Var) -> Var:
        """Normalise (N, C, H, W); with `relu` negative results become 0."""
        if self.folded:
            return jt.maximum(x, 0.0) if self.relu else x
        if self.frozen or not self.is_training():
            scale = self.weight / jt.sqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            y = x * scale.broadcast(x, [0, 2, 3]) + shift.broadcast(x, [0, 2, 3])
            return jt.maximum(y, 0.0) if self.relu else y
        sync = self.sync and world_size() > 1
        if jt.flags.use_cuda:
            y, mean, var = self._normalise_plain(x, sync)
        else:
            y, mean, var = _Normalise(self.eps, self.relu, sync)(x, self.weight, self.bias)
        self._track(mean, var, x.shape[0] * x.shape[2] * x.shape[3] * (world_size() if sync else 1))
        return y

    def _normalise_plain(self, x: Var, sync: bool) -> tuple[Var, Var, Var]:
        """The same in Jittor's own operators, for GPUs."""
        dims = [0, 2, 3]
        mean = x.mean(dims)
        if sync:
            mean = mean.mpi_all_reduce("mean")
        centred = x - mean.broadcast(x, dims)
        var = (centred * centred).mean(dims)
        if sync:
            var = var.mpi_all_reduce("mean")
        scale = self.weight / jt.sqrt(var + self.eps)
        y = centred * scale.broadcast(x, dims) + self.bias.broadcast(x, dims)
        return (jt.maximum(y, 0.0) if self.relu else y), mean, var

    def _track(self, mean: Var, var: Var, count: int) -> None:
        self.batches_seen += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / self.batches_seen
        unbiased = var * (count / max(count - 1, 1))
        self.running_mean.update(self.running_mean + (mean.stop_grad() - self.running_mean) * momentum)
        self.running_var.update(self.running_var + (unbiased.stop_grad() - self.running_var) * momentum)
