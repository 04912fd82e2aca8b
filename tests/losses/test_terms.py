"""Further terms against values computed by hand, finite differences and FarSeg's own outputs."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from building import build_loss, settings

from pfseg.config.targets import instantiate
from pfseg.losses import FocalLoss, LovaszLoss, OhemCrossEntropy, TverskyLoss
from pfseg.losses.cross_entropy import SoftCrossEntropy
from pfseg.models.network import Points, SegOutput
from pfseg.ops import kernels, lovasz
from pfseg.runtime import jt

GOLDEN = "baselines/farseg_loss"
TERM = {"weight": 1.0, "ohem": False, "ignore_index": 255}
FOCAL = {
    "gamma": 2.0,
    "constant": False,
    "normalise": False,
    "annealing": None,
    "steps": 10000,
    "global_reduction": False,
}
DICE = TverskyLoss(alpha=0.5, beta=0.5, smooth=0.0, **TERM)
LOSSES = {
    "soft": SoftCrossEntropy([0.5, 1.0, 2.0], 0.1),
    "focal": FocalLoss(**FOCAL | {"gamma": 1.5}, **TERM),
    "lovasz": LovaszLoss(per_image=False, **TERM),
    "lovasz of images": LovaszLoss(per_image=True, **TERM),
    "tversky": TverskyLoss(alpha=0.3, beta=0.7, smooth=1.0, **TERM),
    "dice": DICE,
}


def variables(logits: np.ndarray, mask: np.ndarray) -> tuple[jt.Var, jt.Var]:
    return jt.array(logits.astype(np.float32)), jt.array(mask.astype(np.int32))


def random_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (2, 4, 5))
    mask[0, 0] = 255
    return rng.standard_normal((2, 3, 4, 5)), mask


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str):
    logits, mask = random_case()
    given = variables(logits, mask)
    gradient = jt.grad(LOSSES[name](*given), given[0]).numpy()
    assert not gradient[0, :, 0].any(), "ignored pixels"
    direction = np.random.default_rng(1).standard_normal(logits.shape)
    ends = [float(LOSSES[name](*variables(logits + sign * 1e-3 * direction, mask))) for sign in (1, -1)]
    np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-3, rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_valid_pixel_gives_zero(name: str):
    given = variables(random_case()[0], np.full((2, 4, 5), 255))
    value = LOSSES[name](*given)
    assert float(value) == 0
    assert (jt.grad(value, given[0]).numpy() == 0).all()


def two_pixels(*probabilities: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two classes such that the second has these probabilities; masks are 1, 0, 0, ..."""
    p = np.array(probabilities)
    logits = np.stack([np.log(1 - p), np.log(p)])[None, :, None]
    return logits, (np.arange(len(p)) == 0).astype(int)[None, None]


def test_class_weights_and_smoothing():
    logits, mask = two_pixels(0.75, 0.5)
    nll = np.log([4 / 3, 2])
    loss = SoftCrossEntropy([1.0, 3.0], 0.0)
    np.testing.assert_allclose(float(loss(*variables(logits, mask))), (3 * nll[0] + nll[1]) / 4, rtol=1e-5)
    others = [np.log(4), np.log(2)]
    smooth = [0.8 * 3 * nll[0] + 0.1 * (3 * nll[0] + others[0]), 0.8 * nll[1] + 0.1 * (nll[1] + 3 * others[1])]
    loss = SoftCrossEntropy([1.0, 3.0], 0.2)
    np.testing.assert_allclose(float(loss(*variables(logits, mask))), sum(smooth) / 4, rtol=1e-5)


def test_focal():
    logits, mask = two_pixels(0.75, 0.5)
    expected = (0.25**2 * np.log(4 / 3) + 0.5**2 * np.log(2)) / 3  # two pixels and an image
    np.testing.assert_allclose(float(FocalLoss(**FOCAL, **TERM)(*variables(logits, mask))), expected, rtol=1e-5)


def test_dice_and_tversky():
    logits, mask = two_pixels(0.75, 0.5, 0.25)
    classes = [(1.25, 0.25, 0.75), (0.75, 0.75, 0.25)]  # hits, false positives, false negatives
    dice = [1 - 2 * tp / (2 * tp + fp + fn) for tp, fp, fn in classes]
    np.testing.assert_allclose(float(DICE(*variables(logits, mask))), np.mean(dice), rtol=1e-5)
    loss = TverskyLoss(alpha=0.3, beta=0.7, smooth=1.0, **TERM)
    tversky = [1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1) for tp, fp, fn in classes]
    np.testing.assert_allclose(float(loss(*variables(logits, mask))), np.mean(tversky), rtol=1e-5)


def test_lovasz():
    logits, mask = two_pixels(0.6, 0.7, 0.2)
    # class 1, errors 0.7, 0.4 and 0.2: the Jaccard losses of the worst one, two, three pixels are 1/2, 1, 1
    first = 0.7 * 1 / 2 + 0.4 * 1 / 2
    # class 0, the same errors: 1/2, 2/3, 1
    second = 0.7 * 1 / 2 + 0.4 * 1 / 6 + 0.2 * 1 / 3
    loss = LovaszLoss(per_image=False, **TERM)
    np.testing.assert_allclose(float(loss(*variables(logits, mask))), (first + second) / 2, rtol=1e-5)


def test_lovasz_equals_the_jaccard_loss_of_certain_predictions():
    rng = np.random.default_rng(2)
    mask, pred = rng.integers(0, 3, (2, 1, 8, 8))
    logits = 100.0 * (pred[:, None] == np.arange(3)[:, None, None])
    overlap = [((pred == k) & (mask == k)).sum() / ((pred == k) | (mask == k)).sum() for k in range(3)]
    loss = LovaszLoss(per_image=False, **TERM)
    np.testing.assert_allclose(float(loss(*variables(logits, mask))), 1 - np.mean(overlap), rtol=1e-5)


def test_slopes_without_the_own_loop(monkeypatch):
    rng = np.random.default_rng(3)
    errors, members = rng.random((3, 50)).astype(np.float32), (rng.random((3, 50)) < 0.3).astype(np.float32)
    members[1] = 0
    given = jt.array(errors), jt.array(members)
    expected = lovasz.jaccard_slopes(*given).numpy()
    monkeypatch.setattr(kernels, "active", lambda: True)
    np.testing.assert_allclose(lovasz.jaccard_slopes(*given).numpy(), expected, rtol=1e-5)


def farseg_case() -> tuple[jt.Var, jt.Var]:
    rng = np.random.default_rng(31)
    logits = (2 * rng.standard_normal((2, 16, 24, 24))).astype(np.float32)
    mask = rng.integers(0, 16, (2, 24, 24))
    mask[:, :3] = 255
    return variables(logits, mask)


@pytest.mark.parametrize("key", [key.removesuffix("/loss") for key in golden.load(GOLDEN) if key.endswith("/loss")])
def test_farsegs_own_values(key: str):
    stored = golden.load(GOLDEN)
    kind, *rest = key.split("/")
    if kind == "annealing":
        loss = FocalLoss(**FOCAL | {"annealing": rest[0]}, **TERM)
        loss.step = int(rest[1])
    else:
        loss = FocalLoss(**FOCAL | {"normalise": rest[0] == "normalize=True", "constant": True}, **TERM)
    logits, mask = farseg_case()
    value = loss(logits, mask)
    np.testing.assert_allclose(float(value), stored[f"{key}/loss"], rtol=1e-4)
    assert golden.difference(jt.grad(value, logits).numpy()[..., ::4, ::4], stored[f"{key}/grad"]) < 1e-4


def test_terms_of_hard_pixels():
    logits, mask = variables(*two_pixels(0.9, 0.2, 0.6))
    mining = OhemCrossEntropy(threshold=0.7, min_kept=1)
    assert mining.hard_mask(logits, mask).numpy().ravel().tolist() == [255, 255, 0]
    loss = instantiate(
        settings("loss", "ce", {}, "loss/term=[focal,dice]", "loss.terms.focal.ohem=true", "loss.min_kept=1").loss
    )
    terms = loss(SegOutput(logits), {"mask": mask})
    assert list(terms) == ["seg", "focal", "dice"]
    np.testing.assert_allclose(float(terms["focal"]), 0.6**2 * -np.log(0.4) / 2, rtol=1e-5)
    weights = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]  # as many as the data set has classes
    soft = build_loss(label_smoothing=0.1, class_weights=weights, min_kept=1)
    six = jt.concat([logits, logits - 9, logits - 9], 1)
    expected = SoftCrossEntropy(weights, 0.1)(six, mining.hard_mask(six, mask))
    np.testing.assert_allclose(float(soft(SegOutput(six), {"mask": mask})["seg"]), float(expected), rtol=1e-6)


def test_auxiliary_logits_and_points():
    logits, mask = variables(*two_pixels(0.9, 0.2, 0.6))
    coordinates = np.array([[[0.1, 0.5], [0.5, 0.5]]], np.float32)  # of the first pixel and of the second
    points = Points(jt.array(coordinates), jt.array(np.log([[[0.25, 0.5], [0.75, 0.5]]]).astype(np.float32)))
    ce = float(build_loss("ce")(SegOutput(logits), {"mask": mask})["seg"])
    loss = build_loss("ce", point_weight=2.0)
    terms = {k: float(v) for k, v in loss(SegOutput(logits, (), (logits,), points), {"mask": mask}).items()}
    assert list(terms) == ["seg", "aux", "point"]
    np.testing.assert_allclose(terms["aux"], 0.4 * ce, rtol=1e-6)
    np.testing.assert_allclose(terms["point"], np.log(4 / 3) + np.log(2), rtol=1e-5)
    several = build_loss("ce", aux_weight=1.0, aux_min_kept=1)(SegOutput(logits, (), (logits,) * 2), {"mask": mask})
    assert list(several) == ["seg", "aux_1", "aux_2"]
    np.testing.assert_allclose(float(several["aux_1"]), -np.log(0.4), rtol=1e-5)
