"""Losses of pixels, order statistics and scores on the GPU kernels, against float64 and against a CPU's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import golden
import numpy as np
import pytest
from building import build_image_weighted, build_relaxed
from plain_cpu import plain_cpu

from pfseg.losses import CrossEntropy, EdgeLoss, OhemCrossEntropy
from pfseg.ops import kernels, pixel_losses, scores
from pfseg.ops.selection import kth_smallest
from pfseg.runtime import jt

# classes, height and width
SIZES = [(2, (7, 9)), (5, (8, 6)), (16, (12, 16)), (17, (5, 5)), (40, (6, 6)), (40, (3, 5))]


@pytest.fixture(autouse=True)
def emulated(library: Path) -> Iterator[None]:
    kernels.emulate(library)
    yield
    kernels.emulate(None)


def make(classes: int, size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((3, classes, *size)).astype(np.float32)
    mask = rng.integers(0, classes, (3, *size)).astype(np.int32)
    mask[rng.random(mask.shape) < 0.2] = 255
    mask[0, 0] = 255  # a whole row
    mask[1, 2, 2:4] = 99  # no class
    return logits, mask


def expected(logits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses (N, H, W) and softmax minus one-hot in float64, 0 where ignored."""
    x = logits.astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    one_hot = mask[:, None] == np.arange(x.shape[1])[:, None, None]
    losses = np.log(e.sum(1)) + x.max(1) - (x * one_hot).sum(1)
    gradient = e / e.sum(1, keepdims=True) - one_hot
    return losses * (mask != 255), gradient * (mask != 255)[:, None]


def on_both(run: Callable[[], list[np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a function gives here and with a CPU's operators."""
    got = run()
    with plain_cpu():
        want = run()
    return zip(got, want, strict=True)


@pytest.mark.parametrize(("classes", "size"), SIZES)
def test_losses_of_pixels(classes, size):
    logits, mask = make(classes, size)
    upstream = np.random.default_rng(1).standard_normal(mask.shape).astype(np.float32)
    x = jt.array(logits)
    losses = pixel_losses.pixel_cross_entropy(x, jt.array(mask), 255)
    gradient = jt.grad((losses * jt.array(upstream)).sum(), x)
    want, slope = expected(logits, mask)
    np.testing.assert_allclose(losses.numpy(), want, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(gradient.numpy(), slope * upstream[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("classes", "size"), SIZES)
def test_cross_entropy(classes, size):
    logits, mask = make(classes, size)
    x = jt.array(logits)
    loss = CrossEntropy()(x, jt.array(mask))
    want, slope = expected(logits, mask)
    count = (mask != 255).sum()
    np.testing.assert_allclose(float(loss), want.sum() / count, rtol=1e-6)
    assert golden.difference(jt.grad(3.0 * loss, x), 3.0 * slope / count) < 1e-6


@pytest.mark.parametrize(("classes", "size"), SIZES[:4])
@pytest.mark.parametrize("threshold", [0.02, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1, 90, 10**6])
def test_hard_examples(classes, size, threshold, min_kept):
    logits, mask = make(classes, size)
    x = jt.array(logits)
    loss = OhemCrossEntropy(threshold, min_kept)(x, jt.array(mask))
    want, slope = expected(logits, mask)
    probability = np.exp(-want)
    limit = max(threshold, np.sort(probability, axis=None)[min(min_kept, mask.size) - 1])
    kept = (mask != 255) & (probability <= limit * (1 + 1e-9))
    np.testing.assert_allclose(float(loss), (want * kept).sum() / kept.sum(), rtol=1e-6)
    assert golden.difference(jt.grad(loss, x), slope * kept[:, None] / kept.sum()) < 1e-6


@pytest.mark.parametrize("min_kept", [1, 8, 9, 20, 21, 60])
def test_equal_probabilities_at_the_limit_are_all_kept(min_kept):
    levels = np.repeat(np.float32([-1.0, 0.5, 2.0, 4.0]), [8, 12, 20, 20])  # 60 pixels in four groups
    levels = np.random.default_rng(0).permutation(levels).reshape(1, 1, 6, 10)
    logits, mask = np.concatenate([levels, np.zeros_like(levels)], 1), np.zeros((1, 6, 10), np.int32)
    mask[levels[:, 0] == 4.0] = 255

    def run() -> list[np.ndarray]:
        x = jt.array(logits)
        loss = OhemCrossEntropy(0.1, min_kept)(x, jt.array(mask))
        return [loss.numpy(), jt.grad(loss, x).numpy()]

    for got, want in on_both(run):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [CrossEntropy(), OhemCrossEntropy(0.7, 5)], ids=lambda loss: type(loss).__name__)
def test_no_valid_pixel_and_not_a_number(loss):
    logits, mask = make(5, (4, 4))
    x = jt.array(logits)
    value = loss(x, jt.array(np.full_like(mask, 255)))
    assert float(value) == 0
    assert (jt.grad(value, x).numpy() == 0).all()
    logits[1, 2, 3, 3] = np.nan
    mask[1, 3, 3] = 1
    x = jt.array(logits)
    value = loss(x, jt.array(mask))
    assert np.isnan(float(value))
    assert np.isnan(jt.grad(value, x).numpy()).any()


def test_many_pixels():
    logits, mask = make(4, (300, 400))
    x = jt.array(logits)
    loss = OhemCrossEntropy(0.001, 200_000)(x, jt.array(mask))
    want, slope = expected(logits, mask)
    probability = np.exp(-want)
    kept = (mask != 255) & (probability <= np.sort(probability, axis=None)[199_999] * (1 + 1e-9))
    np.testing.assert_allclose(float(loss), (want * kept).sum() / kept.sum(), rtol=1e-6)
    assert golden.difference(jt.grad(loss, x), slope * kept[:, None] / kept.sum()) < 1e-6


@pytest.mark.parametrize("loss", [build_image_weighted(), build_relaxed()], ids=lambda loss: type(loss).__name__)
def test_further_losses_as_on_a_cpu(loss):
    logits, mask = make(5, (8, 6))
    mask[mask == 99] = 255

    def run() -> list[np.ndarray]:
        x = jt.array(logits)
        value = loss(x, jt.array(mask))
        return [value.numpy(), jt.grad(value, x).numpy()]

    for got, want in on_both(run):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (300, 400)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_edges(size, share):
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((3, 1, *size)).astype(np.float32)
    logits[0, 0, 0, :3] = -100, 100, 0
    edge = (rng.random((3, *size)) < share).astype(np.float32)
    variable = jt.array(logits)
    loss = EdgeLoss("bce", global_reduction=False)(variable, jt.array(edge))
    x, mean = logits[:, 0].astype(np.float64), edge.mean(dtype=np.float64)
    weight = edge * (1 - mean) + (1 - edge) * mean
    want = weight * (np.maximum(x, 0) - x * edge + np.log1p(np.exp(-np.abs(x))))
    np.testing.assert_allclose(float(loss), want.mean(), rtol=1e-6)
    slope = 2 * weight * (1 / (1 + np.exp(-x)) - edge) / edge.size
    np.testing.assert_allclose(jt.grad(2.0 * loss, variable).numpy()[:, 0], slope, rtol=1e-5, atol=1e-6 / edge.size)


@pytest.mark.parametrize("k", [1, 2, 500, 1000, 1001])
def test_kth_smallest(k):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(500), np.full(501, 0.25)]).astype(np.float32)
    values = rng.permutation(values * rng.choice([1e-3, 1, 1e3], values.size).astype(np.float32))
    assert kth_smallest(jt.array(values), k).numpy() == np.sort(values)[k - 1]


@pytest.mark.parametrize(("classes", "size"), SIZES)
def test_labels(classes, size):
    logits = np.random.default_rng(0).integers(-2, 3, (3, classes, *size)).astype(np.float32)  # with equal ones
    got = scores.most_probable_class(jt.array(logits)).numpy()
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, logits.argmax(1))
    logits[0, 1, 0, 0] = np.nan
    assert scores.most_probable_class(jt.array(logits)).numpy()[0, 0, 0] == 1
