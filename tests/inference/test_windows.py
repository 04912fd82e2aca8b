"""Windows, scales and mirrored views against averages computed by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pfseg.data.tiling import Window
from pfseg.errors import ConfigError
from pfseg.inference.windows import Blend, Inference, blend_weights, softmax


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32)


def pixelwise(batch: np.ndarray) -> np.ndarray:
    """Logits of each pixel from its own colour: the same in every window and mirrored view."""
    return np.stack([batch[:, 0], batch[:, 1] - batch[:, 2]], 1)


def lopsided(batch: np.ndarray) -> np.ndarray:
    """Logits that follow the place in the window: every mirrored view gives others."""
    rows, columns = (np.linspace(-1, 2, side, dtype=np.float32) for side in batch.shape[2:])
    return np.stack([batch[:, 0] * rows[:, None], batch[:, 1] + columns], 1)


class Recorder:
    """`pixelwise`, and the shapes of the batches."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        self.shapes.append(batch.shape)
        return pixelwise(batch)


def test_one_window_over_the_image_is_the_whole_image_exactly():
    whole = Inference(lopsided, num_classes=2).probabilities(image(64, 96))
    np.testing.assert_array_equal(whole, softmax(lopsided(image(64, 96)[None]))[0])
    for overlap in (0, 0.5):
        one = Inference(lopsided, num_classes=2, window=(64, 96), overlap=overlap).probabilities(image(64, 96))
        np.testing.assert_array_equal(one, whole)


@pytest.mark.parametrize(("stride", "min_size", "expected"), [(32, 1, (64, 96)), (1, 1, (33, 70)), (32, 80, (80, 96))])
def test_whole_images_are_padded_to_the_stride(stride: int, min_size: int, expected: tuple[int, int]):
    network = Recorder()
    inference = Inference(network, num_classes=2, stride=stride, min_size=min_size)
    found = inference.probabilities(image(33, 70))
    assert network.shapes == [(1, 3, *expected)]
    np.testing.assert_array_equal(found, softmax(pixelwise(image(33, 70)[None]))[0])


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(50, 70), (10, 70), (50, 20), (10, 10), (32, 48)])
def test_windows_of_a_pixelwise_network_leave_no_trace(shape: tuple[int, int], overlap: float, batch_size: int):
    network = Recorder()
    inference = Inference(network, num_classes=2, window=(32, 48), overlap=overlap, batch_size=batch_size)
    found = inference.probabilities(image(*shape))
    assert found.shape == (2, *shape)
    assert found.dtype == np.float32
    assert {batch[2:] for batch in network.shapes} == {(32, 48)}
    assert max(batch[0] for batch in network.shapes) <= batch_size
    np.testing.assert_allclose(found, softmax(pixelwise(image(*shape)[None]))[0], atol=1e-6)


def test_a_constant_stays_constant():
    def constant(batch: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([0, 1, -1]).reshape(1, 3, 1, 1), (len(batch), 1, *batch.shape[2:]))

    options = {"window": (32, 32), "overlap": 0.4, "scales": (0.5, 1, 1.7), "flips": "d4"}
    found = Inference(constant, num_classes=3, **options).probabilities(image(75, 90))
    expected = softmax(np.float32([0, 1, -1]).reshape(1, 3, 1, 1))[0]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=3e-7)


def test_two_windows_blended_by_hand():
    def one_class_a_window(batch: np.ndarray) -> np.ndarray:
        right = batch[:, :1].mean() > 0
        return np.concatenate([np.full_like(batch[:, :1], -50 if right else 50), np.zeros_like(batch[:, :1])], 1)

    picture = np.zeros((3, 4, 6), np.float32)
    picture[:, :, :2], picture[:, :, 4:] = -1, 1
    found = Inference(one_class_a_window, num_classes=2, window=(4, 4), overlap=0.5).probabilities(picture)
    weights = np.sin(np.pi * (np.arange(4) + 0.5) / 4) ** 2
    share = weights[2:] / (weights[2:] + weights[:2])
    np.testing.assert_allclose(found[0], np.tile([1, 1, *share, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)


def mirrors(flips: str) -> list[tuple[object, object]]:
    """Each view as functions there and back on (..., h, w)."""
    same, h, v = (lambda x: x), (lambda x: x[..., ::-1]), (lambda x: x[..., ::-1, :])
    turned = [(lambda x, k=k: np.rot90(x, k, (-2, -1)), lambda x, k=k: np.rot90(x, -k, (-2, -1))) for k in range(4)]
    mirrored = [(lambda x, t=t: t[0](h(x)), lambda x, t=t: h(t[1](x))) for t in turned]
    few = {"none": [same], "h": [same, h], "v": [same, v], "hv": [same, h, v, lambda x: h(v(x))]}
    return turned + mirrored if flips == "d4" else [(view, view) for view in few[flips]]


@pytest.mark.parametrize("flips", ["none", "h", "v", "hv", "d4"])
def test_mirrored_views_are_averaged_as_by_hand(flips: str):
    batch = image(32, 64)[None]
    found = Inference(lopsided, num_classes=2, flips=flips).window_probabilities(batch)
    views = [back(softmax(lopsided(there(batch)))) for there, back in mirrors(flips)]
    assert len(views) == {"none": 1, "h": 2, "v": 2, "hv": 4, "d4": 8}[flips]
    np.testing.assert_allclose(found, np.mean(views, 0), atol=1e-6)
    if flips != "none":
        assert np.abs(found - views[0]).max() > 0.01


def test_scales_are_averaged_as_by_hand():
    network = Recorder()
    picture = image(64, 96)
    found = Inference(network, num_classes=2, scales=(0.5, 1, 1.6)).window_probabilities(picture[None])
    assert network.shapes == [(1, 3, 32, 64), (1, 3, 64, 96), (1, 3, 96, 160)]  # multiples of 32
    views = []
    for height, width, method in ((32, 64, cv2.INTER_AREA), (64, 96, None), (96, 160, cv2.INTER_LINEAR)):
        if method is None:
            views.append(softmax(pixelwise(picture[None]))[0])
            continue
        back = cv2.INTER_AREA if method == cv2.INTER_LINEAR else cv2.INTER_LINEAR
        scaled = cv2.resize(picture.transpose(1, 2, 0), (width, height), interpolation=method).transpose(2, 0, 1)
        planes = [cv2.resize(plane, (96, 64), interpolation=back) for plane in pixelwise(scaled[None])[0]]
        views.append(softmax(np.array(planes)[None])[0])
    np.testing.assert_allclose(found[0], np.mean(views, 0), atol=1e-6)


def test_rows_leave_the_blend_as_soon_as_they_are_done():
    inference = Inference(lopsided, num_classes=2, window=(32, 48), overlap=0.5)
    picture = image(100, 70)
    blend, rows = Blend(2, 70), []
    for place in inference.windows((100, 70)):
        if place.y0 > blend.top:
            rows.append(blend.take(place.y0))
        blend.add(place, inference.window_probabilities(inference.padded(picture[:, *place.slices])[None])[0])
    rows.append(blend.take(100))
    assert [part.shape[1] for part in rows] == [16, 16, 16, 16, 4, 32]
    np.testing.assert_allclose(np.concatenate(rows, 1), inference.probabilities(picture), atol=1e-7)


def test_pixels_that_no_window_covers_are_0():
    blend = Blend(2, 6)
    blend.add(Window(1, 3, 0, 4), np.full((2, 2, 4), 0.5, np.float32))
    found = blend.take(5)
    assert found.shape == (2, 5, 6)
    np.testing.assert_array_equal(found[:, 1:3, :4], 0.5)
    assert found.sum() == 2 * 8 * 0.5


def test_labels_of_one_window_are_those_of_its_logits():
    def close(batch: np.ndarray) -> np.ndarray:
        """Logits that differ by less than probabilities can."""
        return np.stack([np.full_like(batch[:, 0], 0.1), np.full_like(batch[:, 0], np.float32(0.1) + 8e-9)], 1)

    for window in (None, (64, 64)):
        inference = Inference(close, num_classes=2, window=window, overlap=0.5 if window else 0)
        np.testing.assert_array_equal(inference.labels(image(40, 50)), np.ones((40, 50), np.uint8))
    blended = Inference(lopsided, num_classes=2, window=(32, 32), overlap=0.5, flips="h")
    assert blended.labels(image(40, 50)).dtype == np.uint8
    np.testing.assert_array_equal(blended.labels(image(40, 50)), blended.probabilities(image(40, 50)).argmax(0))


def test_windows_lie_at_the_step_that_the_overlap_gives():
    inference = Inference(pixelwise, num_classes=2, window=(896, 896), overlap=1 - 512 / 896)
    assert [place.x0 for place in inference.windows((896, 2000))] == [0, 512, 1024, 1104]
    assert Inference(pixelwise, num_classes=2, window=(4, 4), overlap=0.99).windows((4, 6)) == [
        Window(0, 4, 0, 4),
        Window(0, 4, 1, 5),
        Window(0, 4, 2, 6),
    ]


@pytest.mark.parametrize("side", [1, 2, 31, 896])
def test_weights_are_smooth_positive_and_symmetric(side: int):
    weights = blend_weights(side, 8)
    assert weights.shape == (side, 8)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-4)
    assert np.abs(np.diff(weights, axis=0)).max(initial=0) < 4 / side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1}, r"overlap=1: expected a share of the window from 0 to below 1"),
        ({"overlap": -0.1}, r"overlap=-0.1: expected a share"),
        ({"scales": (1, 0)}, r"scales=\[1, 0\]: expected one or more numbers above 0"),
        ({"scales": ()}, r"scales=\[\]: expected one or more"),
        ({"scales": (float("inf"),)}, r"scales=\[inf\]: expected one or more"),
        ({"flips": "x"}, r"flips=x: expected none \| h \| v \| hv \| d4"),
        ({"window": (0, 32)}, r"window=\[0, 32\]: expected a height and a width of at least 1 px"),
        (
            {"window": (64, 96), "scales": (0.5, 1), "min_size": 64},
            r"windows of 64x96 px at scale 0.5 are too small for this network: it takes 64 px a side at least: "
            r"use windows of 128 px or larger scales",
        ),
    ],
)
def test_settings_out_of_range(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        Inference(pixelwise, num_classes=2, **options)
