"""What a network costs: parameters, multiply-adds and seconds, by stage, seen on its real forward pass.

A stage is a module that the network calls, or that one of its parts other than a sequence calls, such as PFNet's head.
What the network does between them (resizing, fusing) is the rest of the whole.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from pfseg.engine.optimizer import trainable
from pfseg.inference.folding import Execute, modules_of, wrapped
from pfseg.models.network import SegmentationNetwork
from pfseg.ops.convolution import Product
from pfseg.runtime import jt
from pfseg.weights.transfer import Module, Var

nn = jt.nn


@dataclass
class Stage:
    """Cost of a part of a network."""

    name: str  # its attribute in the network, dotted
    parameters: int  # without running statistics
    macs: int = 0  # multiply-adds of convolutions and products for one image; PFNet's points add less than 0.1 %
    seconds: float = 0.0  # median time of a forward pass of the whole batch


def count(model: SegmentationNetwork, shape: tuple[int, int, int, int]) -> tuple[list[Stage], Stage]:
    """Count parameters and multiply-adds of `model.predict` on (N, 3, H, W), without computing anything.

    Returns:
        The stages in the order of their first call, and the whole network, now in evaluation mode. Parts that only
        training uses count in neither.
    """
    model.eval()
    parameters = {name: _parameters(part) for name, part in _parts(model)}
    stages: dict[str, Stage] = {}
    whole = Stage("all", _parameters(model))
    current = [whole]

    def add(macs: int) -> None:
        for stage in {id(stage): stage for stage in (current[-1], whole)}.values():
            stage.macs += macs // shape[0]

    def convolution(module: nn.Conv, execute: Execute) -> Execute:
        def call(x: Var) -> Var:
            y = execute(x)
            add(y.numel() * math.prod(module.weight.shape[1:]))
            return y

        return call

    def product(_: Product, execute: Execute) -> Execute:
        def call(a: Var, b: Var) -> Var:
            add(a.numel() * b.shape[2])
            return execute(a, b)

        return call

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        current.append(stages.setdefault(name, Stage(name, parameters[name])))
        yield
        current.pop()

    counted = wrapped(modules_of(model, nn.Conv), convolution), wrapped(modules_of(model, Product), product)
    with jt.no_grad(), counted[0], counted[1], _in_stages(model, inside):
        model.predict(jt.zeros(shape))  # Jittor infers the shapes, and computes nothing before it is asked for
    whole.parameters -= sum(size for name, size in parameters.items() if name not in stages)
    return list(stages.values()), whole


def clock(
    model: SegmentationNetwork, shape: tuple[int, int, int, int], stages: Sequence[Stage], whole: Stage, rounds: int
) -> None:
    """Time `stages` and the `whole`: median seconds of `rounds` passes, after a first one that compiles.

    The whole is timed in a pass of its own, since timing stages makes each wait for the one before.
    """
    spent: dict[str, float] = {}

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        jt.sync_all(True)
        started = time.perf_counter()
        yield
        jt.sync_all(True)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    image = jt.array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    passes: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        with jt.no_grad():
            started = time.perf_counter()
            model.predict(image).sync(True)
            spent = {whole.name: time.perf_counter() - started}
            with _in_stages(model, inside):
                model.predict(image).sync(True)
        passes.append(spent)
    for stage in (*stages, whole):
        stage.seconds = statistics.median(spent.get(stage.name, 0.0) for spent in passes[1:])


def _parts(model: Module) -> Iterator[tuple[str, Module]]:
    for name, part in vars(model).items():
        if isinstance(part, nn.Sequential):
            yield name, part
        elif isinstance(part, jt.Module):
            inner = [(f"{name}.{key}", each) for key, each in vars(part).items() if isinstance(each, jt.Module)]
            for path, each in inner or [(name, part)]:
                yield path.removeprefix("backbone."), each  # the backbone's, as in its weights' names


def _parameters(module: Module) -> int:
    return sum(weight.numel() for weight in trainable(module).values())


@contextmanager
def _in_stages(model: Module, inside: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Let each stage be executed in the context `inside(name)`."""

    def wrap(name: str, _: Module, execute: Execute) -> Execute:
        def call(*args: Var) -> Var:
            with inside(name):
                return execute(*args)

        return call

    with ExitStack() as stack:
        for name, part in _parts(model):
            # Jittor's lists and sequences are one class, and both call their members.
            members = list(part) if isinstance(part, nn.Sequential) else [part]
            stack.enter_context(wrapped(members, partial(wrap, name)))
        yield
