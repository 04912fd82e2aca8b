"""How a file's weights fit a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pfseg.errors import CheckpointError


@dataclass
class WeightMatch:
    """How a file's weights fit a network; `report` says it in words.

    Attributes:
        loaded: network's name -> array of the network's shape.
        skipped: weights of the file, by the file's names, that the network lacks.
        missing: weights of the network that the file lacks.
        reshaped: those of `loaded` whose shape differed by sides of 1, as (C, 1, 1, 1) for (C,).
        widened: those of `loaded` whose three input channels became others, see `widen`.
        mismatched: network's name -> "file (16, 256, 1, 1), network (6, 256, 1, 1)".
    """

    loaded: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)

    def report(self, separator: str = "\n") -> str:
        """One to three lines: what was loaded, what the network lacks, what only the file has."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        loaded = [f"loaded {len(self.loaded)} of the network's {total} weights", *summary("reshaped", self.reshaped)]
        loaded += summary("with the weights of red, green and blue spread over the bands", self.widened)
        mismatched = [f"{name}: {shapes}" for name, shapes in self.mismatched.items()]
        lacking = [*summary("missing in the file", self.missing), *summary("of another shape, not loaded", mismatched)]
        lines = ["; ".join(loaded), "; ".join(lacking), *summary("in the file only", self.skipped)]
        return separator.join(line for line in lines if line)


def summary(what: str, names: Sequence[str]) -> list[str]:
    """A count of `names` with the first three, such as "2 reshaped (a, b)"; nothing for none."""
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{len(names)} {what} ({', '.join(names[:3])}{more})"] if names else []


def match_weights(
    shapes: Mapping[str, Sequence[int]], weights: Mapping[str, np.ndarray], rename: Callable[[str], str] | None = None
) -> WeightMatch:
    """Sort a file's weights, renamed, by whether they fit a network's `shapes`; CheckpointError if two become one."""
    match = WeightMatch()
    origin: dict[str, str] = {}
    for key, array in weights.items():
        name = rename(key) if rename else key
        if name in origin:
            raise CheckpointError(f"{origin[name]} and {key} of the weights file both become {name}: keep one of them")
        origin[name] = key
        if name not in shapes:
            match.skipped.append(key)
            continue
        shape = tuple(shapes[name])
        if array.shape == shape:
            match.loaded[name] = array
        elif _without_ones(array.shape) == _without_ones(shape):
            match.loaded[name] = array.reshape(shape)
            match.reshaped.append(name)
        elif len(shape) == array.ndim == 4 and array.shape == (shape[0], 3, *shape[2:]):
            match.loaded[name] = widen(array, shape[1])
            match.widened.append(name)
        else:
            match.mismatched[name] = f"file {array.shape}, network {shape}"
    match.missing = [name for name in shapes if name not in origin]
    return match


def widen(weights: np.ndarray, channels: int) -> np.ndarray:
    """Weights (O, 3, h, w) of a first convolution for an image of `channels` bands.

    The first three bands keep the weights of red, green and blue, so that further bands of 0 change nothing; each of F
    further ones gets the mean of the three divided by F. One or two bands share the sum of the three.
    """
    if channels < 3:
        return np.repeat(weights.sum(1, keepdims=True) / channels, channels, axis=1).astype(weights.dtype)
    further = channels - 3
    mean = weights.mean(1, keepdims=True) / max(1, further)
    return np.asarray(np.concatenate([weights, np.repeat(mean, further, axis=1)], axis=1), weights.dtype)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [side for side in shape if side != 1]
