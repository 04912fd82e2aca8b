"""Batch normalisation by PyTorch's definition, synchronised over ranks.

Jittor's own takes the variance as E[x²] - E[x]², which loses the deviation of inputs far from zero, stores the biased
variance, and runs several passes over memory; here a CPU runs the C++ loops of `cpu/batchnorm.cc`. Shapes: x (N, C, H,
W) float32; everything per channel (C,).
"""

from __future__ import annotations

from pfseg.ops import kernels, maps
from pfseg.ops.function import Function
from pfseg.runtime import Var, jt, world_size


class _Normalise(Function):
    """Training-mode normalisation on a CPU; returns (y, mean, biased variance over all ranks)."""

    def __init__(self, eps: float, relu: bool, sync: bool) -> None:
        self.eps, self.relu, self.sync = eps, relu, sync

    def execute(self, x: Var, weight: Var, bias: Var) -> tuple[Var, Var, Var]:
        mean, var = kernels.run_on_cpu("batchnorm_moments", [((x.shape[1],), "float32")] * 2, [x])
        if self.sync:
            # Every rank has equally many values: batches are whole.
            own, mean = mean, mean.mpi_all_reduce("mean")
            var = (var + (own - mean) * (own - mean)).mpi_all_reduce("mean")
        self.inverse = 1.0 / jt.sqrt(var + self.eps)
        self.x, self.mean, self.scale, self.bias = x, mean, weight * self.inverse, bias
        inputs = [x, mean, self.scale, bias]
        (y,) = kernels.run_on_cpu("batchnorm_normalise", [(x.shape, "float32")], inputs, relu=self.relu)
        return y, mean, var

    def grad(self, upstream: Var, _mean: Var, _var: Var) -> tuple[Var, Var, Var]:
        n, c, height, width = self.x.shape
        inputs = [self.x, upstream, self.mean, self.scale, self.bias]
        outputs: list[kernels.Output] = [((c,), "float32")] * 2
        total, product = kernels.run_on_cpu("batchnorm_gradient_sums", outputs, inputs, relu=self.relu)
        weight_grad, bias_grad = product * self.inverse, total
        count = n * height * width
        if self.sync:
            sums = jt.concat([total, product]).mpi_all_reduce("mean")
            total, product = sums[:c], sums[c:]
        inputs += [total / count, product * self.inverse * self.inverse / count]
        outputs = [(self.x.shape, "float32")]
        (x_grad,) = kernels.run_on_cpu("batchnorm_gradient", outputs, inputs, relu=self.relu)
        return x_grad, weight_grad, bias_grad


class _NormaliseMaps(Function):
    """Normalisation on the GPU kernels, of maps x (N, H, W, C) by weight and bias (C,); adds a fourth input, if any.

    Attributes:
        running: mean and unbiased variance (C,) after the batch; what they were where `momentum` is None, which makes
            them what x is normalised by.
    """

    def __init__(self, eps: float, momentum: float | None, relu: bool, sync: bool, running: list[Var]) -> None:
        self.eps, self.momentum, self.sync, self.running = eps, momentum, sync, running
        self.flags = {"relu": relu, "residual": False}

    def execute(self, x: Var, weight: Var, bias: Var, residual: Var | None = None) -> Var:
        more = [] if residual is None else [residual]
        constant = self.momentum is None and jt.flags.no_grad  # without a gradient the kernel takes the variance itself
        if constant:
            mean, variance = self.running
            scale, more = weight, [*more, variance]
        else:
            mean, scale, self.inverse = self._statistics(x, weight)
        self.flags["residual"] = residual is not None
        self.inputs = [mean, scale, bias]
        options = self.flags | {"constant": constant, "eps": self.eps}
        y: Var
        (y,) = kernels.run("batchnorm_normalise", [(x.shape, x.dtype)], [x, *self.inputs, *more], **options)
        self.x, self.y = x, [] if residual is None else [y]
        return y

    def _statistics(self, x: Var, weight: Var) -> list[Var]:
        """Mean, factor and inverse deviation (C,) to normalise by; moves the running statistics."""
        if self.momentum is None:
            mean, var = self.running
            inverse = 1.0 / jt.sqrt(var + self.eps)
            return [mean, weight * inverse, inverse]
        channel = ((x.shape[3],), "float32")
        options = {"eps": self.eps, "momentum": self.momentum}
        if not self.sync:
            outputs, inputs = [channel] * 5 + _scratch(x), [x, weight, *self.running]
            mean, scale, inverse, *self.running, _ = kernels.run("batchnorm_statistics", outputs, inputs, **options)
            return [mean, scale, inverse]
        # Every rank has equally many values: batches are whole.
        own, var, _ = kernels.run("batchnorm_moments", [channel] * 2 + _scratch(x), [x])
        mean = own.mpi_all_reduce("mean")
        var = (var + (own - mean) * (own - mean)).mpi_all_reduce("mean")
        options["count"] = _positions(x) * world_size()
        inputs = [mean, var, weight, *self.running]
        scale, inverse, *self.running = kernels.run("batchnorm_settle", [channel] * 4, inputs, **options)
        return [mean, scale, inverse]

    def grad(self, upstream: Var) -> tuple[Var, ...]:
        x, c = self.x, self.x.shape[3]
        outputs = [((c,), "float32"), ((c,), "float32"), ((2, c), "float32"), *_scratch(x)]
        inputs = [x, upstream, *self.inputs, self.inverse, *self.y]
        flags = self.flags | {"constant": self.momentum is None}
        weight, bias, means, _ = kernels.run("batchnorm_gradient_sums", outputs, inputs, **flags)
        if self.sync and self.momentum is not None:
            means = means.mpi_all_reduce("mean")
        outputs = [(x.shape, x.dtype)] * (1 + len(self.y))
        inputs = [x, upstream, *self.inputs, means, *self.y]
        x_gradient, *residual = kernels.run("batchnorm_gradient", outputs, inputs, **self.flags)
        return x_gradient, weight, bias, *residual


def _scratch(x: Var) -> list[kernels.Output]:
    # 2 floats for each channel and part, of which there are up to 512
    return [((1024 * x.shape[3],), "float32")]


def _positions(x: Var) -> int:
    n, height, width, _ = x.shape
    return int(n * height * width)


class BatchNorm2d(jt.nn.Module):
    """Batch normalisation over (N, C, H, W) float32 as PyTorch defines it.

    Training mode normalises by the batch's own moments (over all ranks with `sync`) and moves the running ones;
    evaluation mode and `freeze()` use the running ones, and `freeze()` outlasts later calls of `train()`.

    Attributes:
        weight, bias, running_mean, running_var: (C,) float32; `running_var` is unbiased.
        momentum: share of the new value in the running one; None for a plain average over all batches since
            `reset_running_stats` (used to re-estimate the statistics).
        tracking: whether batches move the running statistics.
    """

    relu = False
    tracking = True

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
        """Leave normalising to the convolution before, whose weights now include it; see `inference.folding`."""
        self.folded = True

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, no batch seen."""
        self.running_mean.assign(jt.zeros_like(self.running_mean))
        self.running_var.assign(jt.ones_like(self.running_var))
        self.batches_seen = 0

    def execute(self, x: Var) -> Var:
        """Normalise (N, C, H, W); with `relu` negative results become 0."""
        if kernels.maps_last():
            given, back = maps.enter(x)
            return back(self._normalise_maps(given, None, self.relu))
        if self.folded:
            return jt.maximum(x, 0.0) if self.relu else x
        if self.frozen or not self.is_training():
            scale = self.weight / jt.sqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            y = x * scale.broadcast(x, [0, 2, 3]) + shift.broadcast(x, [0, 2, 3])
            return jt.maximum(y, 0.0) if self.relu else y
        sync = self.sync and world_size() > 1
        normalised: Var
        normalised, mean, var = _Normalise(self.eps, self.relu, sync)(x, self.weight, self.bias)
        if self.tracking:
            self._track(mean, var, x.shape[0] * x.shape[2] * x.shape[3] * (world_size() if sync else 1))
        return normalised

    def add_relu(self, x: Var, shortcut: Var) -> Var:
        """max(the normalised x + shortcut, 0), both (N, C, H, W)."""
        if maps.is_last():
            return self._normalise_maps(x, shortcut, relu=True)
        y: Var = jt.maximum(self(x) + shortcut, 0.0)
        return y

    def _normalise_maps(self, x: Var, residual: Var | None, relu: bool) -> Var:
        """The same on the GPU kernels, of maps (N, H, W, C)."""
        if self.folded:
            if residual is not None:
                return maps.add_relu(x, residual)
            if not relu:
                return x
            return jt.maximum(x, 0.0) if kernels.active() else maps.relu(x)
        momentum = None if self.frozen or not self.is_training() else self._next_momentum()
        sync = self.sync and world_size() > 1
        normalise = _NormaliseMaps(self.eps, momentum, relu, sync, [self.running_mean, self.running_var])
        inputs = [x, self.weight, self.bias] if residual is None else [x, self.weight, self.bias, residual]
        y: Var = normalise(*inputs)
        if momentum is not None and self.tracking:
            mean, var = normalise.running
            self.running_mean.update(mean)
            self.running_var.update(var)
        return y

    def _next_momentum(self) -> float:
        """Share of the next batch in the running statistics."""
        self.batches_seen += 1
        return 1.0 / self.batches_seen if self.momentum is None else self.momentum

    def _track(self, mean: Var, var: Var, count: int) -> None:
        momentum = self._next_momentum()
        unbiased = var * (count / max(count - 1, 1))
        self.running_mean.update(self.running_mean + (mean.stop_grad() - self.running_mean) * momentum)
        self.running_var.update(self.running_var + (unbiased.stop_grad() - self.running_var) * momentum)
