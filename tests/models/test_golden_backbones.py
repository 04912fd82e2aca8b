"""Outputs and gradients of the published MSCAN, SegNeXt and ConvNeXt for the same weights."""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import pytest

from pfseg import create_model
from pfseg.losses import CrossEntropy
from pfseg.ops import maps
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.layers import ChannelDropout, ScaledShortcut
from pfseg.ops.resampling import resize
from pfseg.runtime import Var, jt

pytestmark = pytest.mark.slow

TOLERANCE, GRADIENTS = 1e-4, 1e-2  # relative to the largest value


def inner_maps(network: Any, features: list[Var]) -> dict[str, Var]:
    """The stored maps inside the head."""
    head = network.head
    if not hasattr(head, "hamburger"):
        return {"ppm": head.pool(features[-1])}
    size = maps.size(features[1])
    squeezed = head.squeeze(maps.concat([resize(x, size, align_corners=False) for x in features[1:]]))
    return {"squeeze": squeezed, "nmf": head.hamburger.factorise(squeezed), "ham": head.hamburger(squeezed)}


@pytest.mark.parametrize("size", ["256x256", "224x352"])
@pytest.mark.parametrize(
    ("file", "model"), [("mscan_s", "segnext_s"), ("segnext_t", "segnext_t"), ("convnext_t_upernet",) * 2]
)
def test_network(file: str, model: str, size: str) -> None:
    stored = {key.removeprefix(f"{size}/"): value for key, value in golden.load(file).items() if key.startswith(size)}
    network = golden.fill(create_model(model, num_classes=16))
    keys = {key: list(var.shape) for key, var in network.state_dict().items()}
    if file == "mscan_s":
        keys = {key: shape for key, shape in keys.items() if not key.startswith("head.")}
    assert keys == golden.shapes(file)
    shape = tuple(map(int, size.split("x")))
    image = np.random.default_rng(int(stored.pop("input_seed"))).standard_normal((1, 3, *shape)).astype(np.float32)
    with jt.no_grad():
        features = network.features(jt.array(image))
        got = {f"c{i}": golden.thinned(x) for i, x in enumerate(features, 1)}
        if "logits" in stored:
            logits = network(jt.array(image)).logits.numpy()[0]
            assert (logits.argmax(0)[::4, ::4] == stored.pop("argmax")).mean() > 0.999
            got |= {key: golden.thinned(x) for key, x in inner_maps(network, features).items()}
            got |= {"logits": logits[:, ::16, ::16]}
            got["head_logits"] = network.head(features).logits.numpy()[0, :, ::4, ::4]
        if network.aux is not None:
            got["aux_logits"] = network.aux(features[-2]).numpy()[0, :, ::4, ::4]
    assert got.keys() == stored.keys()
    for key, value in got.items():
        assert golden.difference(value, stored[key]) < TOLERANCE, key


def test_gradients_of_segnext() -> None:
    stored = golden.load("segnext_t_grad_192")
    rng = np.random.default_rng(21)
    image = rng.standard_normal((2, 3, 192, 192)).astype(np.float32)
    mask = np.kron(rng.integers(0, 16, (2, 12, 12)), np.ones((1, 16, 16))).astype(np.int32)
    mask[:, :16] = 255
    network = golden.fill(create_model("segnext_t", num_classes=16))
    network.train()  # evaluation mode takes no gradients; all that it changes is set as in it
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.freeze()
        if isinstance(module, ChannelDropout | ScaledShortcut):
            module.p = 0.0
    network.head.hamburger.ham.eval()
    loss = CrossEntropy()(network(jt.array(image)).logits, jt.array(mask))
    np.testing.assert_allclose(float(loss), stored["loss"], rtol=1e-4)
    keys = [key.removeprefix("gradnorm/") for key in stored if key.startswith("gradnorm/")]
    state = network.state_dict()
    for key, gradient in zip(keys, jt.grad(loss, [state[key] for key in keys]), strict=True):
        value = gradient.numpy()
        np.testing.assert_allclose(np.linalg.norm(value), stored[f"gradnorm/{key}"], rtol=GRADIENTS, err_msg=key)
        if f"grad/{key}" in stored:
            sample = value.ravel()[:: max(1, value.size // 256)][:256]
            assert golden.difference(sample, stored[f"grad/{key}"]) < GRADIENTS, key
