"""Outputs, gradients and costs of the networks beside PFNet, as their authors' modules have them."""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import pytest

from pfseg import create_model
from pfseg.engine.cost import count
from pfseg.losses import CrossEntropy
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import ChannelDropout
from pfseg.runtime import Var, jt

# Relative to the largest value. Larger ones would be mistakes: the least that one makes is 3e-3.
FEATURES, GRADIENTS, POINTS = 1e-3, 1e-2, 1e-4
SIZE = (224, 352)
NETWORKS = ("fpn_r50", "pointrend_r50", "upernet_r50", "pspnet_r50", "deeplabv3plus_r50", "sfnet_r18", "farseg_r50")


def load(name: str) -> dict[str, np.ndarray]:
    return golden.load(f"baselines/{name}")


def inner_maps(name: str, head: Any, features: list[Var]) -> dict[str, Var]:
    """What is stored of the maps inside a head."""
    kind = name.partition("_")[0]
    if kind in ("fpn", "pointrend"):
        return {"p2": head.fpn(features)[0]}
    if kind == "upernet":
        return {"ppm": head.ppm(features[-1])}
    if kind == "pspnet":
        return {"ppm": jt.concat(head.ppm(features[-1]), 1)}
    if kind == "deeplabv3plus":
        return {"aspp": head.aspp(features[-1])}
    if kind == "farseg":
        pyramid = head.fpn(features)
        return {"p2": pyramid[0], "r2": head.sr(features[-1].mean([2, 3], keepdims=True), pyramid)[0]}
    if kind == "ccnet":
        first = head.convs[0](features[-1])
        return {"conv0": first, "cca": head.cca(head.cca(first))}
    flows = []
    for align in head.fpn_out_align:
        flow = align.flow
        align.flow = lambda coarse, fine, flow=flow: flows.append(flow(coarse, fine)) or flows[-1]
    head(features)
    return {"flow1": flows[-1]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, "ccnet_r50"])
def test_network(name: str) -> None:
    stored = load(name)
    network = golden.fill(create_model(name, num_classes=16))
    if "subdivision_num_points" in stored:
        network.head.points = int(stored.pop("subdivision_num_points"))
    image = np.random.default_rng(int(stored.pop("input_seed"))).standard_normal((1, 3, *SIZE)).astype(np.float32)
    with jt.no_grad():
        features = network.features(jt.array(image))
        logits = network.predict(jt.array(image)).numpy()[0]
        output = network.head.coarse(network.head.fpn(features)) if "pointrend" in name else network.head(features)[0]
        got = {"c4": golden.thinned(features[3]), "logits": logits[:, ::16, ::16]}
        got["head_logits"] = output.numpy()[0, :, ::4, ::4]
        if network.aux is not None:
            got["aux_logits"] = network.aux(features[2]).numpy()[0, :, ::4, ::4]
        got |= {key: golden.thinned(x) for key, x in inner_maps(name, network.head, features).items()}
    assert (logits.argmax(0)[::4, ::4] == stored.pop("argmax")).mean() > 0.999
    assert got.keys() == stored.keys()
    for key, value in got.items():
        assert golden.difference(value, stored[key]) < FEATURES, key


@pytest.mark.slow
def test_gradients_of_sfnet() -> None:
    stored = load("sfnet_r18_grad_192")
    rng = np.random.default_rng(int(stored["input_seed"]))
    image = rng.standard_normal((2, 3, 192, 192)).astype(np.float32)
    mask = np.kron(rng.integers(0, 16, (2, 12, 12)), np.ones((1, 16, 16))).astype(np.int32)
    mask[:, :16] = 255
    network = golden.fill(create_model("sfnet_r18", num_classes=16))
    network.train()  # evaluation mode takes no gradients; BatchNorm and dropout are set as in it
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.freeze()
        if isinstance(module, ChannelDropout):
            module.p = 0.0
    loss = CrossEntropy()(network(jt.array(image)).logits, jt.array(mask))
    np.testing.assert_allclose(float(loss), stored["loss"], rtol=1e-4)
    state = network.state_dict()
    keys = [key.removeprefix("gradnorm/") for key in stored if key.startswith("gradnorm/")]
    for key, gradient in zip(keys, jt.grad(loss, [state[key] for key in keys]), strict=True):
        value = gradient.numpy()
        np.testing.assert_allclose(np.linalg.norm(value), stored[f"gradnorm/{key}"], rtol=GRADIENTS, err_msg=key)
        if f"grad/{key}" in stored:
            sample = value.ravel()[:: max(1, value.size // 256)][:256]
            assert golden.difference(sample, stored[f"grad/{key}"]) < GRADIENTS, key


@pytest.mark.slow
def test_training_points_of_pointrend() -> None:
    from pfseg.ops.sampling import nearest_labels

    stored = load("pointrend_points_128")
    rng = np.random.default_rng(int(stored["input_seed"]))
    image = jt.array(rng.standard_normal((2, 3, 128, 128)).astype(np.float32))
    mask = np.kron(rng.integers(0, 16, (2, 16, 16)), np.ones((1, 8, 8))).astype(np.int32)
    mask[:, :8] = 255
    network = golden.fill(create_model("pointrend_r50", num_classes=16))
    head = network.head
    head.choice.count, head.choice.generator = 96, rng
    pyramid = head.fpn(network.features(image))
    coarse, p2 = (jt.array(x.numpy()) for x in (head.coarse(pyramid), pyramid[0]))  # apart, for their gradients
    coordinates = head.choice(coarse)
    np.testing.assert_array_equal(coordinates.numpy(), stored["point_coords"])
    logits = head.classify(coarse, p2, coordinates)
    assert golden.difference(logits.numpy()[:, :, ::4], stored["point_logits"]) < POINTS
    labels = nearest_labels(jt.array(mask), coordinates * 128.0 - 0.5, 255)
    np.testing.assert_array_equal(labels.numpy(), stored["point_labels"])
    loss = CrossEntropy()(logits.unsqueeze(3), labels.unsqueeze(2))
    np.testing.assert_allclose(float(loss), stored["point_loss"], rtol=1e-4)
    to_coarse, to_p2 = jt.grad(loss, [coarse, p2])
    assert golden.difference(to_coarse.numpy()[:, :, ::4, ::4], stored["grad_coarse"]) < POINTS
    assert golden.difference(to_p2.numpy()[:, ::16, ::4, ::4], stored["grad_p2"]) < POINTS


COSTS = {  # millions of parameters and billions of multiply-adds at 512 px and 16 classes, without auxiliary heads
    "fpn_r18": (15.56, 38.1),
    "fpn_r50": (28.60, 51.1),
    "fpn_r101": (47.59, 70.5),
    "pointrend_r50": (28.81, 54.5),
    "upernet_r18": (40.93, 226.7),
    "upernet_r50": (64.15, 243.6),
    "upernet_r101": (83.15, 263.0),
    "upernet_lite_r50": (41.86, 85.2),
    "pspnet_r50": (46.72, 184.1),
    "pspnet_r101": (65.71, 261.7),
    "deeplabv3plus_r50": (41.33, 181.9),
    "deeplabv3plus_r101": (60.32, 259.5),
    "ccnet_r50": (47.57, 206.7),
    "ccnet_r101": (66.56, 284.3),
    "sfnet_r18": (12.87, 30.4),
    "sfnet_r50": (31.32, 82.9),
    "sfnet_r101": (50.32, 102.3),
    "farseg_r18": (16.88, 41.0),
    "farseg_r50": (31.49, 53.9),
    "farseg_r101": (50.49, 73.3),
    "segnext_t": (4.23, 6.3),
    "segnext_s": (13.90, 15.5),
    "segnext_b": (27.57, 34.4),
    "convnext_t_upernet": (59.25, 233.5),
}


@pytest.mark.parametrize("name", COSTS)
def test_costs(name: str) -> None:
    _, whole = count(create_model(name, num_classes=16), (1, 3, 512, 512))
    parameters, macs = COSTS[name]
    assert whole.parameters / 1e6 == pytest.approx(parameters, abs=0.01)
    assert whole.macs / 1e9 == pytest.approx(macs, abs=0.07)
