"""Weights that a training starts from: those of a backbone, or of a whole network with another class count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pfseg.errors import CheckpointError
from pfseg.runtime import jt
from pfseg.weights.checkpoint import read_meta
from pfseg.weights.matching import WeightMatch, match_weights
from pfseg.weights.reading import read_weights


class Network(Protocol):
    """What starting weights need of a network; it may also have a `variant`."""

    num_classes: int

    def state_dict(self) -> dict[str, jt.Var]: ...  # noqa: D102


def load_backbone(model: Network, path: Path, rename: Callable[[str], str] | None) -> str:
    """Load a backbone file into all weights but those that begin with `head.`, and report what was loaded.

    `rename` turns the file's names into the network's. Raises CheckpointError if unreadable, or nothing in it matches.
    """
    state = {key: var for key, var in model.state_dict().items() if not key.startswith("head.")}
    match = match_weights(_shapes(state), read_weights(path), rename)
    if not match.loaded:
        raise CheckpointError(
            f"nothing in {path} matches the backbone: expected keys such as {', '.join(list(state)[:2])}; "
            f"give a backbone file of this network (config: model.pretrained). {_line(match)}"
        )
    _assign(state, match)
    return match.report()


def load_network(model: Network, path: Path) -> str:
    """Load a whole network's weights, and report what was loaded and what was left.

    Layers that differ in the number of classes alone keep their initialisation. Raises CheckpointError for a file that
    is unreadable, or of another network or variant.
    """
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
            f"{path} holds another network: {_line(match)}. Give a file of the same network, with any number of "
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


def _line(match: WeightMatch) -> str:
    return match.report().replace("\n", "; ")


def _shapes(state: Mapping[str, jt.Var]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(var.shape) for key, var in state.items()}


def _assign(state: Mapping[str, jt.Var], match: WeightMatch) -> None:
    for key, value in match.loaded.items():
        state[key].assign(jt.array(value))
