"""Scales and mirrored views against averages computed by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy_networks import Recorder, image, lopsided, pixelwise, sliding

from pfseg.errors import ConfigError
from pfseg.inference.views import softmax


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
    found = sliding(lopsided, flips=flips).window_probabilities(batch)
    views = [back(softmax(lopsided(there(batch)))) for there, back in mirrors(flips)]
    assert len(views) == {"none": 1, "h": 2, "v": 2, "hv": 4, "d4": 8}[flips]
    np.testing.assert_allclose(found, np.mean(views, 0), atol=1e-6)
    if flips != "none":
        assert np.abs(found - views[0]).max() > 0.01


def test_scales_are_averaged_as_by_hand():
    network = Recorder()
    picture = image(64, 96)
    found = sliding(network, scales=(0.5, 1, 1.6)).window_probabilities(picture[None])
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


def test_windows_too_small_for_the_network():
    message = (
        r"windows of 64x96 px at scale 0.5 are too small for this network: it takes 64 px a side at least: "
        r"use windows of 128 px or larger scales"
    )
    with pytest.raises(ConfigError, match=message):
        sliding(pixelwise, window=(64, 96), scales=(0.5, 1), min_size=64)
