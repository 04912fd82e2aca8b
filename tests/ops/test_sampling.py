"""Samples against NumPy, gradients against finite differences."""

from __future__ import annotations

import numpy as np

from pfseg.ops import kernels, sampling
from pfseg.runtime import jt


def reference(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    n, c, height, width = x.shape
    padded = np.zeros((n, c, height + 200, width + 200))
    padded[:, :, 100:-100, 100:-100] = x
    column, row = np.moveaxis(places.astype(np.float64) + 100, -1, 0)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right, down = column - left, row - top
    images = np.arange(n)[:, None]
    total = np.zeros((n, places.shape[1], c))
    for i, vertical in enumerate((1 - down, down)):
        for j, horizontal in enumerate((1 - right, right)):
            total += padded[images, :, top + i, left + j] * (vertical * horizontal)[..., None]
    return total.transpose(0, 2, 1)


def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    places = rng.uniform(-2, 8, (2, 300, 2)).astype(np.float32)
    places[0, :4] = [[0, 0], [5, 4], [-90, 3], [2, 90]]
    return (
        rng.standard_normal((2, 3, 5, 6)).astype(np.float32),
        places,
        rng.standard_normal((2, 3, 300)).astype(np.float32),
    )


def test_samples_and_gradients():
    x, places, upstream = case()
    given = jt.array(x), jt.array(places)
    y = sampling.sample(*given)
    np.testing.assert_allclose(y.numpy(), reference(x, places), atol=1e-5)
    to_x, to_places = (g.numpy() for g in jt.grad((y * jt.array(upstream)).sum(), list(given)))
    np.testing.assert_allclose((to_x * x).sum(), (y.numpy() * upstream).sum(), rtol=1e-4)  # linear in x
    wide, step = places.astype(np.float64), 1e-5
    for axis in (0, 1):
        moved = [wide.copy(), wide.copy()]
        moved[0][..., axis] += step
        moved[1][..., axis] -= step
        slope = (reference(x, moved[0]) - reference(x, moved[1])) / (2 * step)
        expected = (slope * upstream).sum(1)
        np.testing.assert_allclose(to_places[:, 4:, axis], expected[:, 4:], atol=2e-4)


def test_samples_without_the_own_loops(monkeypatch):
    x, places, upstream = case()
    expected = sampling.sample(jt.array(x), jt.array(places)).numpy()
    given = jt.array(x), jt.array(places)
    wanted = jt.grad((sampling.sample(*given) * jt.array(upstream)).sum(), list(given))
    wanted = [gradient.numpy() for gradient in wanted]
    monkeypatch.setattr(kernels, "active", lambda: True)
    y = sampling.sample(*given)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)
    for got, want in zip(jt.grad((y * jt.array(upstream)).sum(), list(given)), wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


def test_nearest_labels():
    labels = jt.array(np.arange(12, dtype=np.int32).reshape(1, 3, 4))
    places = jt.array(np.array([[[0.5, 0], [1.5, 1], [2.6, 1.4], [-0.5, 0], [-0.6, 0], [3, 2.5]]], np.float32))
    assert sampling.nearest_labels(labels, places, 255).numpy().tolist() == [[0, 6, 7, 0, 255, 11]]
