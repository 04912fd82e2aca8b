"""Weights of a network by their published keys, all float32: to and from NumPy arrays, and from files to start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pfseg.errors import CheckpointError
from pfseg.runtime import jt
from pfseg.weights.checkpoint import read_meta
from pfseg.weights.matching import WeightMatch, match_weights
from pfseg.weights.reading import read_weights

Arrays = dict[str, np.ndarray]
Rename = Callable[[str, Collection[str]], str]
Module = jt.nn.Module
Var = jt.Var


class Network(Protocol):
    """What starting weights need of a network; it may also have a `variant`."""

    num_classes: int

    def state_dict(self) -> dict[str, jt.Var]: ...  # noqa: D102


def export_weights(model: Module) -> Arrays:
    """Weights and running statistics of a network."""
    return to_arrays(model.state_dict())


def load_weights(model: Module, arrays: Arrays, source: str) -> None:
    """Replace all weights of a network; raises CheckpointError, changing nothing, for keys or shapes of another."""
    state = model.state_dict()
    for key, var in state.items():
        if key not in arrays:
            raise CheckpointError(f"{source} lacks {key}: it is of another model; check model and model/backbone")
        if tuple(arrays[key].shape) != tuple(var.shape):
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(arrays[key].shape)}, expected {tuple(var.shape)}; "
                "it is of another model or class count (config: model, dataset.classes)"
            )
    assign(state, arrays)


def to_arrays(variables: Mapping[str, Var]) -> Arrays:
    """Copies of Jittor variables on the CPU."""
    jt.sync_all()
    return {key: var.numpy() for key, var in variables.items()}


def assign(variables: Mapping[str, Var], arrays: Arrays) -> None:
    """Replace the values of Jittor variables by the arrays of the same keys."""
    for key, var in variables.items():
        var.assign(jt.array(arrays[key]))
    # Otherwise Jittor fuses the copies with what follows, which then rounds differently than in an undisturbed run.
    jt.sync_all()


def load_backbone(model: Network, path: Path, rename: Rename | None, fresh: Sequence[str] = ()) -> str:
    """Load a file, its keys renamed, into all weights but `head.*` and `aux.*`; returns a report.

    Raises CheckpointError if any is missing or of another shape, but for those of the modules `fresh`.
    """
    state = {key: var for key, var in model.state_dict().items() if not key.startswith(("head.", "aux."))}
    weights = read_weights(path)
    match = match_weights(_shapes(state), weights, (lambda key: rename(key, weights.keys())) if rename else None)
    if not match.loaded:
        raise CheckpointError(
            f"nothing in {path} matches the backbone: expected keys such as {', '.join(list(state)[:2])}; "
            f"give a backbone file of this network (config: model.pretrained). {match.report('; ')}"
        )
    prefixes = tuple(f"{name}." for name in fresh)
    if match.mismatched or any(not key.startswith(prefixes) for key in match.missing):
        raise CheckpointError(
            f"{path} is of another backbone: {match.report('; ')}. Give a file of this one, or choose another backbone "
            "(config: model.pretrained, model.backbone)"
        )
    _assign(state, match)
    return match.report()


def load_network(model: Network, path: Path) -> str:
    """Load all weights but layers of another class count; returns a report, CheckpointError for another network."""
    state = model.state_dict()
    weights = read_weights(path)
    match = match_weights(_shapes(state), weights)
    names = list(match.mismatched)
    for_classes = [
        name
        for name in names
        if state[name].shape[0] == model.num_classes and weights[name].shape[1:] == tuple(state[name].shape[1:])
    ]
    if match.missing or for_classes != names:
        raise CheckpointError(
            f"{path} holds another network: {match.report('; ')}. Give a file of the same network, with any number of "
            "classes (config: model.init, model), or one of the backbone alone as model.pretrained"
        )
    meta, variant = read_meta(path), getattr(model, "variant", None)
    stored = meta["config"].get("model", {}).get("variant") if meta else variant
    if stored != variant:
        raise CheckpointError(
            f"{path} was trained with model.variant={stored}, this run has {variant}, which pools differently under "
            f"the same names; set model.variant={stored} (config: model.init)"
        )
    _assign(state, match)
    left = f"; left at their initialisation, of {model.num_classes} classes: {', '.join(names)}" if names else ""
    return f"started from {path}: {len(match.loaded)} of {len(state)} weights{left}"


def _shapes(state: Mapping[str, Var]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(var.shape) for key, var in state.items()}


def _assign(state: Mapping[str, Var], match: WeightMatch) -> None:
    for key, value in match.loaded.items():
        state[key].assign(jt.array(value))
