"""Batch normalisation on the GPU kernels."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from plain_cpu import plain_cpu

from pfseg.ops import kernels, maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.runtime import jt

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def deviation(got, expected: np.ndarray) -> float:
    """Root of the mean square of the differences, relative to that of the expected values."""
    return float(np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("emulated", ["fp32"], indirect=True)  # its values lie too far from zero for 16 bits
def test_training_mode(emulated):
    stored = golden.load("batchnorm_train")
    norm = golden.fill(BatchNorm2d(6))
    norm.train()
    x = jt.array(stored["x"])
    y = norm(x)
    gradients = jt.grad((y * jt.array(stored["upstream"])).sum(), [x, norm.weight, norm.bias])
    assert deviation(y, stored["out"]) < TOLERANCE[emulated]
    for name, gradient in zip(("grad_x", "grad_weight", "grad_bias"), gradients, strict=True):
        assert deviation(gradient, stored[name]) < TOLERANCE[emulated], name
    assert deviation(norm.running_mean, stored["running_mean"]) < TOLERANCE[emulated]
    assert deviation(norm.running_var, stored["running_var"]) < TOLERANCE[emulated]


@pytest.mark.parametrize("channels", [5, 26, 64])
@pytest.mark.parametrize("frozen", [False, True])
def test_residual_and_relu_as_on_a_cpu(emulated, channels, frozen):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, channels, 9, 7)).astype(np.float32) + 3 for _ in range(3)]
    if emulated == "bf16":  # what both start from
        arrays = [maps.to_first(maps.to_last(jt.array(a))).numpy() for a in arrays]
    norm = golden.fill(BatchNormReLU(channels))
    norm.train()
    if frozen:
        norm.freeze()

    def run() -> list[np.ndarray]:
        x, shortcut, upstream = map(jt.array, arrays)
        if kernels.maps_last():
            with maps.channels_last():
                y = maps.to_first(norm.add_relu(maps.to_last(x), maps.to_last(shortcut - 3)))
        else:
            norm.relu = False
            y = norm.add_relu(x, shortcut - 3)
            norm.relu = True
        plain = norm(x)
        loss = (y * upstream).sum() + (plain * upstream).sum()
        return [v.numpy() for v in (y, plain, *jt.grad(loss, [x, shortcut, norm.weight, norm.bias]))]

    got = run()
    with plain_cpu():
        expected = run()
    for a, b in zip(got, expected, strict=True):
        assert deviation(a, b) < TOLERANCE[emulated]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_several_batches(emulated, momentum, monkeypatch):
    """Alone and, with sums that are exchanged, as of two ranks that have the same batch."""
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, 26, 5, 3)).astype(np.float32) * 2 + 1 for _ in range(2)]
    upstream = jt.array(rng.standard_normal((2, 26, 5, 3)).astype(np.float32))
    if emulated == "bf16":
        batches = [maps.to_first(maps.to_last(jt.array(a))).numpy() for a in batches]

    def run(images: list[np.ndarray], scale: float = 1.0) -> list[np.ndarray]:
        norm = golden.fill(BatchNorm2d(26))
        norm.momentum = momentum
        norm.train()
        results = []
        for image in images:
            x = jt.array(image)
            y = norm(x)
            repeated = jt.concat([upstream] * (image.shape[0] // 2), 0)
            gradients = jt.grad((y * repeated).sum() * scale, [x, norm.weight, norm.bias])
            results += [v.numpy() for v in (y, *gradients)]
        return [*results, norm.running_mean.numpy(), norm.running_var.numpy()]

    def same(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
        for a, b in zip(got, expected, strict=True):
            assert deviation(a, b[: len(a)]) < TOLERANCE[emulated]

    library = kernels._state["emulated"]
    alone = run(batches)
    monkeypatch.setattr("pfseg.ops.batchnorm.world_size", lambda: 2)
    monkeypatch.setattr(jt.Var, "mpi_all_reduce", lambda var, _: var, raising=False)
    ranks = run(batches)
    monkeypatch.undo()
    kernels.emulate(None)
    same(alone, run(batches))
    both = run([np.concatenate([a, a]) for a in batches])
    for i in (2, 3, 6, 7):  # the gradients of the weights are each rank's own
        both[i] = both[i] / 2
    same(ranks, both)
    kernels.emulate(library)


def test_evaluation_without_gradients_is_the_same(emulated):
    norm = golden.fill(BatchNormReLU(26))
    norm.eval()
    rng = np.random.default_rng(0)
    x, shortcut = (jt.array(rng.standard_normal((2, 26, 5, 7)).astype(np.float32)) for _ in range(2))

    def run() -> list[np.ndarray]:
        with maps.channels_last():
            a, b = maps.to_last(x), maps.to_last(shortcut)
            return [maps.to_first(y).numpy() for y in (norm(a), norm.add_relu(a, b))]

    expected = run()
    with jt.no_grad():
        got = run()
    for a, b in zip(got, expected, strict=True):
        assert golden.difference(a, b) < (1e-6 if emulated == "fp32" else 1e-2)
