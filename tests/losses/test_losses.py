"""Losses against stored outputs of the published code and against hand-computed values."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from building import build_image_weighted, build_loss, build_relaxed

from pfseg.losses import CrossEntropy, EdgeLoss, OhemCrossEntropy
from pfseg.models import SegOutput
from pfseg.runtime import jt

SEGMENTATION = [
    CrossEntropy(),
    OhemCrossEntropy(threshold=0.7, min_kept=5),
    build_image_weighted(),
    build_image_weighted(per="batch", reduction="sum"),
    build_relaxed(),
]


def arrays(*values):
    return [jt.array(np.asarray(v, np.int32 if np.asarray(v).dtype.kind == "i" else np.float32)) for v in values]


@pytest.mark.parametrize(
    ("file", "min_kept"), [("losses", 1000), ("losses_all_kept", 10**6), ("losses_confident", 3000)]
)
def test_published_values_and_gradients(file, min_kept):
    stored = golden.load(file)
    logits, mask = arrays(stored["logits"], stored["target"].astype(np.int32))
    for name, loss in (("ohem", OhemCrossEntropy(threshold=0.7, min_kept=min_kept)), ("ce", CrossEntropy())):
        value = loss(logits, mask)
        np.testing.assert_allclose(float(value), stored[name], rtol=1e-4)
        gradient = jt.grad(value, logits).numpy()[..., ::3, ::3]
        assert golden.difference(gradient, stored[f"{name}_grad"]) < 1e-4
    edges = tuple(jt.array(e) for e in stored["edge_logits"])
    batch = {"mask": mask, "edge": jt.array(stored["edge_mask"].astype(np.float32))}
    terms = build_loss(ohem=False, edge_weight=25.0)(SegOutput(logits, edges), batch)
    for layer in (3, 2, 1):
        expected = stored[f"joint_bce_edge_loss_layer{layer}"]
        np.testing.assert_allclose(float(terms[f"edge_layer{layer}"]), expected, rtol=1e-4)
    gradient = jt.grad(sum(terms.values()), edges[0]).numpy()[..., ::3, ::3]
    assert golden.difference(gradient, stored["joint_bce_edge_grad0"]) < 1e-4


@pytest.mark.parametrize("loss", SEGMENTATION, ids=lambda loss: type(loss).__name__)
def test_a_batch_without_a_valid_pixel_gives_zero(loss):
    logits, mask = arrays(np.random.default_rng(0).standard_normal((2, 3, 4, 4)), np.full((2, 4, 4), 255))
    value = loss(logits, mask)
    assert float(value) == 0
    assert (jt.grad(value, logits).numpy() == 0).all()


@pytest.mark.parametrize("loss", SEGMENTATION, ids=lambda loss: type(loss).__name__)
def test_ignored_pixels_do_not_matter(loss):
    rng = np.random.default_rng(0)
    logits, mask = rng.standard_normal((1, 3, 4, 4)), rng.integers(0, 3, (1, 4, 4))
    mask[0, 0] = 255
    before = float(loss(*arrays(logits, mask)))
    logits[:, :, 0] += 3 * rng.standard_normal((3, 4))
    np.testing.assert_allclose(float(loss(*arrays(logits, mask))), before, rtol=1e-5)


def test_extreme_logits_stay_finite():
    sign = np.where(np.arange(16).reshape(1, 1, 4, 4) % 2, 1e4, -1e4)
    logits, mask = arrays(np.concatenate([sign, -sign], 1), np.ones((1, 4, 4), int))
    value = build_relaxed()(logits, mask)
    assert np.isfinite(float(value))
    assert np.isfinite(jt.grad(CrossEntropy()(logits, mask), logits).numpy()).all()


def test_image_weights():
    logits = np.zeros((2, 2, 1, 4))
    logits[0, 0, 0, 0] = 1.0
    mask = np.array([[[0, 0, 0, 1]], [[1, 1, 255, 255]]])
    nll = np.log(2.0)
    hit = np.log(1 + np.exp(-1.0))
    first = (1.25 * (hit + 2 * nll) + 1.75 * nll) / (3 * 1.25 + 1.75)  # frequencies 3/4 and 1/4
    expected = [first, nll]
    inputs = arrays(logits, mask)
    np.testing.assert_allclose(float(build_image_weighted()(*inputs)), np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(float(build_image_weighted(reduction="sum")(*inputs)), sum(expected), rtol=1e-6)
    whole = (1.5 * (hit + 2 * nll) + 1.5 * nll) / 6  # over the batch both classes have 3 of 6 pixels
    np.testing.assert_allclose(float(build_image_weighted(per="batch")(*inputs)), (whole + nll) / 2, rtol=1e-6)


def test_relaxation_against_a_slow_reference():
    rng = np.random.default_rng(3)
    logits, mask = rng.standard_normal((2, 4, 6, 5)), rng.integers(0, 4, (2, 6, 5))
    mask[0, 2:4, 1:3] = 255
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = []
    for n, y, x in np.ndindex(*mask.shape):
        if mask[n, y, x] == 255:
            continue
        near = mask[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        allowed = sorted(set(near.ravel().tolist()) - {255})
        losses.append(-np.log(probability[n, allowed, y, x].sum()) / len(allowed))
    loss = build_relaxed(until_epoch=2)
    np.testing.assert_allclose(float(loss(*arrays(logits, mask))), np.mean(losses), rtol=1e-5)
    loss.epoch = 2
    np.testing.assert_allclose(
        float(loss(*arrays(logits, mask))), float(CrossEntropy()(*arrays(logits, mask))), rtol=1e-6
    )


def test_dice():
    x, edge = np.array([[[[0.0, np.log(3.0)]]]]), np.array([[[0.0, 1.0]]])
    p = np.array([0.5, 0.75])
    expected = 1 - (2 * 0.75 + 1) / ((p**2).sum() + 1 + 1)
    np.testing.assert_allclose(float(EdgeLoss("dice", global_reduction=False)(*arrays(x, edge))), expected, rtol=1e-6)


def test_unknown_edge_loss():
    with pytest.raises(ValueError, match=r"edge loss 'focal' is unknown; use 'bce' or 'dice' \(config: loss.edge\)"):
        EdgeLoss("focal", global_reduction=False)


def test_no_edge_terms_without_their_weight():
    logits, mask = arrays(np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2), int))
    terms = build_loss(ohem=False, edge_weight=0.0)(SegOutput(logits, (logits[:, :1],) * 3), {"mask": mask})
    assert list(terms) == ["seg"]
    np.testing.assert_allclose(float(terms["seg"]), np.log(2), rtol=1e-6)
