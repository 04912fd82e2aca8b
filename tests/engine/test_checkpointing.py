"""Segments that are computed again: same losses, gradients and statistics, in less memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pfseg import create_model
from pfseg.engine.checkpointing import checkpoint_segments
from pfseg.engine.optimizer import trainable
from pfseg.errors import ConfigError
from pfseg.inference.folding import modules_of
from pfseg.ops import kernels
from pfseg.ops.layers import Random
from pfseg.runtime import jt

IMAGE = np.random.default_rng(3).standard_normal((2, 3, 64, 64)).astype(np.float32)


def step(name: str, checkpointing: bool) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A pass forward and backward: features' mean, gradients of the backbone, and all that it leaves behind."""
    jt.set_global_seed(0)
    model = create_model(name, num_classes=3)
    model.train()
    for i, layer in enumerate(modules_of(model, Random)):
        layer.generator = np.random.default_rng(i)
    if checkpointing:
        checkpoint_segments(model)
    weights = trainable(model.backbone)
    loss = sum((x * x).mean() for x in model.features(jt.array(IMAGE)))
    gradients = jt.grad(loss, list(weights.values()))
    return loss.numpy(), dict(zip(weights, (g.numpy() for g in gradients), strict=True)), left(model)


def left(model: Any) -> dict[str, np.ndarray]:
    drawn = {f"{i}": layer.generator.random(3) for i, layer in enumerate(modules_of(model, Random))}
    return drawn | {key: var.numpy() for key, var in model.state_dict().items() if "running" in key}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["fpn_r18", "fpn_mscan_t", "fpn_convnext_t"])
def test_everything_but_the_memory_is_the_same(name: str, precision: str):
    kernels.set_precision(precision)
    try:
        plain, again = step(name, checkpointing=False), step(name, checkpointing=True)
    finally:
        kernels.set_precision("fp32")
    assert plain[0] == again[0]
    for before, after in zip(plain[1:], again[1:], strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(value, after[key], err_msg=key)


def test_frozen_weights_and_evaluation():
    model = create_model("fpn_r18", num_classes=3)
    checkpoint_segments(model)
    model.train()
    weights = trainable(model.backbone)
    frozen = {key: var for key, var in weights.items() if key.startswith(("layer0", "layer1"))}
    for var in frozen.values():
        var.stop_grad()
    learning = [var for key, var in weights.items() if key not in frozen]
    gradients = jt.grad(model.features(jt.array(IMAGE))[-1].sqr().mean(), learning)
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)
    model.eval()
    with jt.no_grad():
        assert np.isfinite(model.predict(jt.array(IMAGE)).numpy()).all()


def test_a_network_without_segments():
    class Plain(jt.nn.Module):
        pass

    with pytest.raises(ConfigError, match=r"trainer.checkpointing=true: Plain has neither `segments` nor layer0"):
        checkpoint_segments(Plain())


PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
from pfseg import create_model
from pfseg.engine.checkpointing import checkpoint_segments
from pfseg.runtime import jt

model = create_model("fpn_r50", num_classes=3)
model.train()
if sys.argv[1] == "again":
    checkpoint_segments(model)
def peak():  # of this process alone: getrusage starts from the memory of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
loss = model.features(jt.array(np.ones((2, 3, 512, 512), np.float32)))[-1].mean()
gradients = jt.grad(loss, [var for var in model.backbone.parameters() if not var.is_stop_grad()])
jt.sync(gradients)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory():
    def grown(how: str) -> int:
        command = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    assert grown("again") < 0.9 * grown("kept")
