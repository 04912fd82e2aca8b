"""What a network costs: parameters, multiply-adds and seconds, by stage, seen on its real forward pass.

A stage is a module called by the network itself, or by one of its parts that is no sequence, such as PFNet's head. What
the network does between them (resizing, fusing) is the rest of the whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfseg.runtime import jt

nn = jt.nn
Module = Any  # jittor.Module, which ships no types


@dataclass
class Stage:
    """Cost of a part of a network.

    Attributes:
        name: its attribute in the network, dotted.
        parameters: number of weights; running statistics are none.
        macs: multiply-adds of convolutions for one image; the products of points' features add less than 0.1 %.
        seconds: median time of a forward pass of the whole batch.
    """

    name: str
    parameters: int
    macs: int = 0
    seconds: float = 0.0


def count(model: Module, shape: tuple[int, int, int, int]) -> tuple[list[Stage], Stage]:
    """Count parameters and multiply-adds of `model.predict`, without computing anything.

    Args:
        model: the network; it is put into evaluation mode.
        shape: of the batch, (N, 3, H, W).

    Returns:
        The stages in the order of their first call, and the whole network.
    """
    model.eval()
    stages = {name: Stage(name, _parameters(part)) for name, part in _parts(model)}
    whole = Stage("all", _parameters(model))
    order: list[str] = []
    with jt.no_grad(), _counted(model, stages, whole, order):
        model.predict(jt.zeros(shape))  # Jittor infers the shapes, and computes nothing before it is asked for
    for stage in (*stages.values(), whole):
        stage.macs //= shape[0]
    return [stages[name] for name in order], whole


def clock(model: Module, shape: tuple[int, int, int, int], stages: Sequence[Stage], whole: Stage, rounds: int) -> None:
    """Fill in the seconds of `stages` and of the `whole`: medians of `rounds` passes, after one that compiles.

    The whole is timed without stages, which would end its parts one after the other.
    """
    image = jt.array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    passes: dict[str, list[float]] = {stage.name: [] for stage in (*stages, whole)}
    for number in range(rounds + 1):
        with jt.no_grad():
            started = time.perf_counter()
            model.predict(image).sync(True)
            spent = {whole.name: time.perf_counter() - started}
            with _timed(model, spent):
                model.predict(image).sync(True)
        if number > 0:
            for name, seconds in passes.items():
                seconds.append(spent.get(name, 0.0))
    for stage in (*stages, whole):
        stage.seconds = statistics.median(passes[stage.name])


def _parts(model: Module) -> Iterator[tuple[str, Module]]:
    for name, part in vars(model).items():
        if isinstance(part, nn.Sequential):
            yield name, part
        elif isinstance(part, jt.Module):
            inner = [(f"{name}.{key}", each) for key, each in vars(part).items() if isinstance(each, jt.Module)]
            for path, each in inner or [(name, part)]:
                yield path.removeprefix("backbone."), each  # the backbone's, as in its weights' names


def _callables(part: Module) -> list[Module]:
    """The modules that are called: Jittor's lists and sequences are one class, and both call their members."""
    return list(part) if isinstance(part, nn.Sequential) else [part]


def _parameters(module: Module) -> int:
    state = module.state_dict()
    return sum(v.numel() for key, v in state.items() if not key.endswith(("running_mean", "running_var")))


@contextmanager
def _wrapped(modules: list[Module], wrap: Callable[[Module, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let calls of these modules go through `wrap(module, execute)`."""
    before = [vars(module).get("execute") for module in modules]
    for module in modules:
        module.execute = wrap(module, module.execute)
    try:
        yield
    finally:
        for module, execute in zip(modules, before, strict=True):
            if execute is None:
                del module.execute  # that of the class again
            else:
                module.execute = execute


@contextmanager
def _counted(model: Module, stages: dict[str, Stage], whole: Stage, order: list[str]) -> Iterator[None]:
    """Count multiply-adds into the stage that is being executed, and note the order of the stages."""
    current = [whole]

    def add(macs: int) -> None:
        for stage in {id(stage): stage for stage in (current[-1], whole)}.values():
            stage.macs += macs

    def convolution(module: Module, execute: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any) -> Any:
            y = execute(x)
            kernel = module.weight.shape
            add(y.numel() * kernel[1] * kernel[2] * kernel[3])
            return y

        return call

    def stage_of(stage: Stage) -> Callable[[Module, Callable[..., Any]], Callable[..., Any]]:
        def wrap(_: Module, execute: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if stage.name not in order:
                    order.append(stage.name)
                current.append(stage)
                try:
                    return execute(*args)
                finally:
                    current.pop()

            return call

        return wrap

    with ExitStack() as stack:
        stack.enter_context(_wrapped([m for m in model.modules() if isinstance(m, nn.Conv)], convolution))
        for name, part in _parts(model):
            stack.enter_context(_wrapped(_callables(part), stage_of(stages[name])))
        yield


@contextmanager
def _timed(model: Module, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of each stage; Jittor computes nothing before it is asked for."""

    def stage_of(name: str) -> Callable[[Module, Callable[..., Any]], Callable[..., Any]]:
        def wrap(_: Module, execute: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                jt.sync_all(True)
                started = time.perf_counter()
                result = execute(*args)
                jt.sync_all(True)
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - started
                return result

            return call

        return wrap

    with ExitStack() as stack:
        for name, part in _parts(model):
            stack.enter_context(_wrapped(_callables(part), stage_of(name)))
        yield
