"""The published networks' outputs and gradients for the same weights."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from building import build_loss

from pfseg import create_model
from pfseg.models.pfnet import PyramidPooling
from pfseg.models.pointflow import PointFlow
from pfseg.ops import kernels
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt

pytestmark = pytest.mark.slow

FEATURES, GRADIENTS, PARTS = 1e-3, 1e-2, 1e-4  # tolerances, relative to the largest value


def test_batchnorm_in_training_mode():
    stored = golden.load("batchnorm_train")
    norm = golden.fill(BatchNorm2d(6))
    norm.train()
    x = jt.array(stored["x"])
    y = norm(x)
    gradients = jt.grad((y * jt.array(stored["upstream"])).sum(), [x, norm.weight, norm.bias])
    assert golden.difference(y, stored["out"]) < PARTS
    for name, gradient in zip(("grad_x", "grad_weight", "grad_bias"), gradients, strict=True):
        assert golden.difference(gradient, stored[name]) < PARTS, name
    assert golden.difference(norm.running_mean, stored["running_mean"]) < PARTS
    assert golden.difference(norm.running_var, stored["running_var"]) < PARTS


def test_pointflow_and_its_gradients():
    stored = golden.load("pointflow")
    module = PointFlow(16, match_dim=8, num_edge_points=12, edge_pool=3, salient_pool=5, pooling="floor_ceil")
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == golden.shapes("pointflow")
    golden.fill(module)
    coarse, fine = jt.array(stored["x_high"]), jt.array(stored["x_low"])
    out, edge = module(coarse, fine)
    gradients = jt.grad((out * out).sum() + (edge * edge).sum(), [coarse, fine])
    assert golden.difference(out, stored["out"]) < PARTS
    assert golden.difference(edge, stored["edge"]) < PARTS
    assert golden.difference(gradients[0], stored["grad_high"]) < PARTS
    assert golden.difference(gradients[1], stored["grad_low"]) < PARTS


def test_pyramid_pooling():
    stored = golden.load("pspmodule_16x16")
    module = PyramidPooling(32, 16, (1, 2, 3, 6), "floor_ceil", dropout=0.1)
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == golden.shapes("pspmodule")
    assert golden.difference(golden.fill(module)(jt.array(stored["x"])), stored["out"]) < PARTS


@pytest.mark.parametrize(
    ("file", "model", "num_classes", "variant", "size"),
    [
        ("pfnet_r50_256", "pfnet_r50", 16, "pytorch", (256, 256)),
        ("pfnet_r50_320x448", "pfnet_r50", 16, "pytorch", (320, 448)),
        ("pfnet_r50_jittorpool_512", "pfnet_r50", 16, "jittor", (512, 512)),
        ("pfnet_r2n101_jittorpool_512", "pfnet_r2n101", 2, "jittor", (512, 512)),
    ],
)
def test_network(file, model, num_classes, variant, size):
    stored = golden.load(file)
    network = golden.fill(create_model(model, num_classes=num_classes, variant=variant))
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == golden.shapes(model)
    image = np.random.default_rng(int(stored["input_seed"])).standard_normal((1, 3, *size)).astype(np.float32)
    with jt.no_grad():
        features = network.features(jt.array(image))
        head_logits, edges = network.head(features)
        logits = network(jt.array(image)).logits.numpy()
        got = {
            "c4": features[3][:, ::16],
            "ppm": network.head.ppm(features[3])[:, ::8],
            "logits": logits[..., ::16, ::16],
        }
        if "c1" in stored:
            steps = zip(features, (8, 4, 2, 1), strict=True)
            got |= {f"c{i}": c[:, ::16, ::step, ::step] for i, (c, step) in enumerate(steps, 1)}
            got |= {"edge3": edges[0], "edge2": edges[1], "edge1": edges[2][..., ::2, ::2]}
            got["head_logits"] = head_logits[..., ::4, ::4]
    for name, value in got.items():
        assert golden.difference(value, stored[name]) < FEATURES, name
    labels = logits.argmax(1)
    step = size[0] // stored["argmax"].shape[1]
    assert (labels[:, ::step, ::step] == stored["argmax"]).mean() > 0.999


def test_network_in_16_bits(monkeypatch):
    stored = golden.load("pfnet_r50_256")
    network = golden.fill(create_model("pfnet_r50", num_classes=16))
    image = np.random.default_rng(int(stored["input_seed"])).standard_normal((1, 3, 256, 256)).astype(np.float32)
    monkeypatch.setitem(kernels._state, "precision", "bf16")
    with jt.no_grad():
        logits = network.predict(jt.array(image)).numpy()
    step = 256 // stored["argmax"].shape[1]
    assert 0.96 < (logits.argmax(1)[:, ::step, ::step] == stored["argmax"]).mean() < 1.0
    assert 0.0 < golden.difference(logits[..., ::16, ::16], stored["logits"]) < 0.3


def test_resnet101_has_the_published_keys():
    network = create_model("pfnet_r101", num_classes=16)
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == golden.shapes("pfnet_r101")


def test_loss_and_gradients_of_the_whole_network():
    stored = golden.load("pfnet_r50_grad_192")
    rng = np.random.default_rng(int(stored["seed"]))
    image = rng.standard_normal((2, 3, 192, 192)).astype(np.float32)
    mask = np.kron(rng.integers(0, 6, (2, 12, 12)), np.ones((1, 16, 16))).astype(np.int32)
    mask[:, :16] = 255
    edge = np.kron(rng.random((2, 24, 24)) > 0.8, np.ones((1, 8, 8))).astype(np.float32)
    network = golden.fill(create_model("pfnet_r50", num_classes=6))
    network.train()  # evaluation mode takes no gradients; BatchNorm and dropout are set as in it
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.freeze()
    network.head.ppm.bottleneck[3].p = 0.0
    terms = build_loss(edge_weight=25.0)(network(jt.array(image)), {"mask": jt.array(mask), "edge": jt.array(edge)})
    assert list(terms) == ["seg", "edge_layer3", "edge_layer2", "edge_layer1"]
    np.testing.assert_allclose([float(v) for v in terms.values()], stored["terms"], rtol=1e-4)
    keys = [key.removeprefix("grad/") for key in stored if key.startswith("grad/")]
    state = network.state_dict()
    for key, gradient in zip(keys, jt.grad(sum(terms.values()), [state[key] for key in keys]), strict=True):
        gradient = gradient.numpy()
        sample = gradient.ravel()[:: max(1, gradient.size // 256)][:256]
        assert golden.difference(sample, stored[f"grad/{key}"]) < GRADIENTS, key
        np.testing.assert_allclose(np.linalg.norm(gradient), stored[f"gradnorm/{key}"], rtol=GRADIENTS)
