"""Updates of weights on the GPU kernels, against Jittor's own optimizers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pfseg.config import run_settings
from pfseg.devices import Nodes
from pfseg.engine.optimizer import WeightAverage, build_optimizer, export_optimizer, gradient_norms, load_optimizer
from pfseg.launch.mpirun import _command, _environment
from pfseg.ops import kernels, optimizers
from pfseg.runtime import jt
from pfseg.weights.transfer import export_weights, load_weights

SHAPES = [(3,), (5, 7), (64, 33, 3, 3), (1,), (8192,), (2, 4097)]


class Weights(jt.nn.Module):
    """Weights of many sizes in two parts, and one that doesn't learn."""

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.first = jt.nn.Module()
        self.second = jt.nn.Module()
        for i in range(copies):
            for k, shape in enumerate(SHAPES):
                part = self.second if k % 2 else self.first
                setattr(part, f"w{i}_{k}", jt.array(rng.standard_normal(shape).astype(np.float32)))
        self.fixed = jt.array([9.0]).stop_grad()


@pytest.fixture
def kernel_library(library):
    yield library
    kernels.emulate(None)
    kernels.set_precision("fp32")


def settings(name: str) -> Any:
    common = {"lr": 0.05, "scale_lr": "none", "reference_batch": 16, "weight_decay": 0.01}
    common |= {"decay_norms": True, "lr_factors": {}}
    if name in ("sgd", "nesterov"):
        return run_settings.Sgd(name="sgd", momentum=0.9, nesterov=name == "nesterov", **common)
    return run_settings.Adam(name=name, betas=(0.9, 0.99), eps=1e-3, **common)


def losses(model: Any, step: int, scale: float = 1.0) -> Any:
    """A loss with gradients of any size, which depend on the weights."""
    rng = np.random.default_rng(step + 1)
    terms = []
    for _, weight in model.named_parameters():
        if not weight.is_stop_grad():
            direction = rng.standard_normal(tuple(weight.shape)).astype(np.float32) * scale
            terms.append((weight * jt.array(direction) + 0.05 * weight.sqr()).sum())
    return sum(terms)


def train(model: Any, optimizer: Any, steps: range, clip: float | None = None, average: Any = None) -> None:
    for step in steps:
        optimizer.lr = 0.05 / (step + 1)
        for _ in range(2):
            optimizer.backward(losses(model, step))
        if clip:
            optimizer.clip_grad_norm(clip)
        optimizer.n_step = step + 1
        optimizer.step()
        if average:
            average.update(model, step)


def close(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert list(got) == list(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=tolerance, atol=tolerance * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize(("name", "clip"), [("sgd", 0.5), ("nesterov", None), ("adam", 0.5), ("adamw", None)])
def test_steps_and_resuming_as_on_a_cpu(kernel_library, name, clip):
    expected = Weights()
    plain = build_optimizer(settings(name), expected)
    average = WeightAverage(expected, 0.5)
    train(expected, plain, range(4), clip, average)

    kernels.emulate(kernel_library)
    model = Weights()
    optimizer = build_optimizer(settings(name), model)
    own = WeightAverage(model, 0.5)
    train(model, optimizer, range(2), clip, own)
    again = Weights()
    load_weights(again, export_weights(model), "x")
    resumed = build_optimizer(settings(name), again)
    load_optimizer(resumed, export_optimizer(optimizer), "x")
    own_again = WeightAverage(again, 0.5)
    own_again.load(own.export())
    train(again, resumed, range(2, 4), clip, own_again)

    close(export_weights(again), export_weights(expected), 3e-6)
    close(export_optimizer(resumed), export_optimizer(plain), 3e-6)
    close(own_again.export(), average.export(), 3e-6)
    assert not again.first.w0_0.is_stop_grad()


def test_more_weights_than_a_launch_takes(kernel_library):
    expected, model = Weights(25), Weights(25)
    train(expected, build_optimizer(settings("adamw"), expected), range(1))
    kernels.emulate(kernel_library)
    train(model, build_optimizer(settings("adamw"), model), range(1))
    close(export_weights(model), export_weights(expected), 3e-6)


def test_norms_of_all_and_of_each_part(kernel_library):
    model = Weights()
    optimizer = build_optimizer(settings("sgd"), model)
    optimizer.backward(losses(model, 0))
    names, values = gradient_norms(model, optimizer)
    expected = values.numpy()
    kernels.emulate(kernel_library)
    again, norms = gradient_norms(model, optimizer)
    assert again == names == ["grad_norm", "grad_norm/first", "grad_norm/second"]
    np.testing.assert_allclose(norms.numpy(), expected, rtol=1e-6)


def test_gradients_that_are_no_whole_allocation(kernel_library):
    kernels.emulate(kernel_library)
    whole = jt.array(np.arange(20000, dtype=np.float32))
    part = whole[1:]
    (norms, _) = optimizers.measure([part], [1])
    np.testing.assert_allclose(norms.numpy()[0], np.linalg.norm(part.numpy()), rtol=1e-5)


def test_the_scale_of_the_loss(kernel_library):
    kernels.emulate(kernel_library)
    plain, model = Weights(), Weights()
    train(plain, build_optimizer(settings("sgd"), plain), range(3), 0.5)
    kernels.set_precision("fp16")
    optimizer = build_optimizer(settings("sgd"), model)
    train(model, optimizer, range(2), 0.5)
    before = export_weights(model)
    state = export_optimizer(optimizer)
    np.testing.assert_array_equal(state["optimizer/loss_scale"], [65536, 2])

    optimizer.backward(losses(model, 2, scale=np.inf))  # of no use: nothing changes but the scale
    optimizer.clip_grad_norm(0.5)
    optimizer.step()
    close(export_weights(model), before, 0)
    np.testing.assert_array_equal(export_optimizer(optimizer)["optimizer/loss_scale"], [32768, 0])

    train(model, optimizer, range(2, 3), 0.5)
    close(export_weights(model), export_weights(plain), 3e-6)
    optimizer.loss_scale.state.assign(jt.array([1024.0, 1999.0]))
    optimizer.backward(losses(model, 3))
    _, norms = gradient_norms(model, optimizer)
    optimizer.step()
    np.testing.assert_array_equal(export_optimizer(optimizer)["optimizer/loss_scale"], [2048, 0])
    kernels.emulate(None)
    kernels.set_precision("fp32")
    again = build_optimizer(settings("sgd"), plain)
    again.backward(losses(plain, 3))
    np.testing.assert_allclose(norms.numpy(), gradient_norms(plain, again)[1].numpy(), rtol=1e-5)


def test_joined_tensors_come_apart_again(kernel_library):
    kernels.emulate(kernel_library)
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(SHAPES[i % len(SHAPES)]).astype(np.float32) for i in range(300)]
    tensors = [jt.array(values) for values in given]
    joined = optimizers.join(tensors)
    places = np.cumsum([0, *(-(-values.size // 4) * 4 for values in given)])
    assert joined.numel() == places[-1]
    for values, place in zip(given, places, strict=False):
        np.testing.assert_array_equal(joined.numpy()[place : place + values.size], values.ravel())
    for values, found in zip(given, optimizers.split(joined * 2, tensors), strict=True):
        np.testing.assert_array_equal(found.numpy(), values * 2)


@pytest.mark.slow
def test_ranks_average_in_one_message_as_in_many(kernel_library, tmp_path):
    script = tmp_path / "average.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from pfseg.engine.optimizer import average_gradients, gradients, local_gradients\n"
        "from pfseg.ops import kernels, optimizers\n"
        "from pfseg.runtime import jt, rank\n"
        "rng = np.random.default_rng(0)\n"
        "weights = [jt.array(rng.standard_normal(shape).astype(np.float32)) for shape in [(3,), (5, 7), (64, 33)]]\n"
        "found, factor = [], rank() + 0.1\n"
        "for library in (None, Path(sys.argv[1])):\n"
        "    kernels.emulate(library)\n"
        "    optimizer = optimizers.Sgd(weights, 0.1, 0.9)\n"
        "    with local_gradients():\n"
        "        optimizer.backward(sum((weight.sqr() * factor).sum() for weight in weights))\n"
        "    average_gradients(optimizer)\n"
        "    found.append([gradient.numpy() for _, gradient in gradients(optimizer)])\n"
        "for weight, many, one in zip(weights, *found, strict=True):\n"
        "    np.testing.assert_array_equal(many, one)\n"
        "    np.testing.assert_allclose(one, weight.numpy() * 1.2, rtol=1e-6)\n"
    )
    env = _environment({"PFSEG_DEVICE": "cpu"})
    command = [*_command(2, Nodes(), env), sys.executable, str(script), str(kernel_library)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
