"""A whole training step on the GPU kernels, beside the same on a CPU."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from building import build_loss, settings
from plain_cpu import plain_cpu

from pfseg.build import build_model
from pfseg.ops.layers import ChannelDropout
from pfseg.runtime import jt

pytestmark = pytest.mark.slow


def step(model, size: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Logits and losses of a training step, and gradients by weight."""
    rng = np.random.default_rng(3)
    image = jt.array(rng.standard_normal((2, 3, size, size)).astype(np.float32))
    mask = jt.array(rng.integers(0, 5, (2, size, size)).astype(np.int32))
    edge = jt.array((rng.random((2, size, size)) < 0.1).astype(np.float32))
    output = model(image)
    terms = build_loss(ohem=True, min_kept=1000)(output, {"mask": mask, "edge": edge})
    weights = dict(model.named_parameters())
    names = [name for name, var in weights.items() if not name.endswith(("running_mean", "running_var"))]
    gradients = jt.grad(sum(terms.values()), [weights[name] for name in names])
    values = {name: term.numpy() for name, term in terms.items()} | {"logits": output.logits.numpy()}
    return values, {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


NARROW = {  # widths of the heads, so that the emulation takes seconds
    "pfnet_r18": {},
    "upernet_r18": {"fpn_dim": 32, "pool_dim": 16},
    "deeplabv3plus_r18": {"dim": 32, "fine_dim": 16, "aux_dim": 16, "dilations": [2, 3]},
    "sfnet_r18": {"fpn_dim": 32},
    "pointrend_r18": {"fpn_dim": 32, "dim": 32, "point_dim": 32, "train_points": 32},
}


@pytest.mark.parametrize("emulated", ["fp32"], indirect=True)
@pytest.mark.parametrize("name", NARROW)
def test_training_step_as_on_a_cpu(emulated, name):
    model = golden.fill(build_model(settings("model", name, NARROW[name]).model, 5))
    model.train()
    for layer in model.modules():
        if isinstance(layer, ChannelDropout):
            layer.p = 0.0
    if name == "pointrend_r18":  # the same points both times
        model.head.choice.draw = lambda n, *shape: np.random.default_rng(0).random((n, *shape))
    state = {key: var.numpy() for key, var in model.state_dict().items()}
    size = 96 if name == "pfnet_r18" else 64
    values, gradients = step(model, size)
    model.load_state_dict(state)
    with plain_cpu():
        expected_values, expected_gradients = step(model, size)
    for key, value in values.items():
        assert golden.difference(value, expected_values[key]) < 1e-3, key
    floor = 1e-6 * max(map(np.linalg.norm, expected_gradients.values()))  # biases before BatchNorm have no gradient
    for key, gradient in gradients.items():
        norm = np.linalg.norm(expected_gradients[key])
        assert np.linalg.norm(gradient - expected_gradients[key]) < 5e-2 * norm + floor, key
