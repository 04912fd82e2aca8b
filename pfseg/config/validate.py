"""Check of plain dictionaries against dataclasses whose annotations say type and range.

A group with several kinds (`optimizer=sgd|adamw`) is told apart by one of its keys. A `_target_` of the user's own
may have keys of its own besides the common ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pfseg.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Limit:
    """Range of a number: `above` and `below` are excluded, `least` and `most` included."""

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the range."""
        return self.above < value < self.below and self.least <= value <= self.most

    def __str__(self) -> str:
        """The range in words, to follow "a number"."""
        if self.least == self.most:
            return f" equal to {self.least:g}"
        words = ("above", "of at least", "of at most", "below")
        parts = [f" {word} {bound:g}" for word, bound in zip(words, dataclasses.astuple(self), strict=True)]
        return " and".join(part for part in parts if not part.endswith("inf"))


@dataclass(frozen=True, eq=False)
class Kinds:
    """Schemas of a group with several kinds: the key that tells them apart, and the schema of each of its values.

    `other` is the schema of the keys that any further `_target_` must have; None allows no others.
    """

    key: str
    schemas: Mapping[str, type]
    other: type | None = None


def validate(value: Any, hint: Any, key: str = "") -> Any:
    """Check `value` against a type.

    Args:
        value: plain dictionaries, lists and scalars; "???" is a value that has to be given.
        hint: a schema class, or a type as its fields have them.
        key: dotted key of `value`, for messages.

    Returns:
        The value, whole numbers turned into floats where the type says so.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a number out of range.
    """
    if value == "???":
        raise ConfigError(f"{key} is not set: add `{key}=<{describe(hint)}>` to the command")
    group = _group(hint)
    if group is None:
        try:
            return _convert(value, hint)
        except _Mismatch:
            expected = describe(hint)
            plain = isinstance(value, (int, float)) and not isinstance(value, bool) and "number" in expected
            got = "" if plain else f", got {_kind(value)}"  # a number of the wrong size speaks for itself
            raise ConfigError(f"{key}={_show(value)}: expected {expected}{got}") from None
    if value is None and type(None) in get_args(hint):
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={_show(value)}: expected a group of settings, got {_kind(value)}")
    if isinstance(group, Kinds):
        return _validate_kind(value, group, key)
    return _validate_fields(value, group, key, open_=False)


def unknown_key(key: str, known: Iterable[str], note: str = "") -> ConfigError:
    """The error for a key that its group does not have, naming the nearest of those that it has."""
    group, _, name = key.rpartition(".")
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    prefix = f"{group}." if group else ""
    hint = f"did you mean `{prefix}{near[0]}`? " if near else ""
    return ConfigError(
        f"unknown key `{key}`: {hint}known keys{f' of {group}' if group else ''}{note}: {', '.join(names)}"
    )


def describe(hint: Any) -> str:
    """A type in words for a message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0]) + "".join(str(extra) for extra in args[1:] if isinstance(extra, Limit))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in args)
    if origin is Literal:
        return " | ".join(str(part) for part in args)
    if origin is tuple:
        return f"{len(args)} values in brackets, each {describe(args[0])}"
    if origin is list:
        return "a list in brackets" + ("" if args[0] is Any else f", each {describe(args[0])}")
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "a group of settings")


class _Mismatch(Exception):
    """A value is not of the wanted type."""


def _group(hint: Any) -> Kinds | type | None:
    """The kinds or the schema that a type stands for; None for plain values."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Kinds):
            return extra
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return next((found for part in parts if (found := _group(part)) is not None), None)


def _validate_kind(value: Mapping[str, Any], kinds: Kinds, key: str) -> dict[str, Any]:
    where = f"{key}.{kinds.key}"
    kind = validate(value.get(kinds.key, "???"), str, where)
    schema = kinds.schemas.get(kind)
    if schema is not None:
        return _validate_fields(value, schema, key, open_=False, note=f" ({kind.rpartition('.')[2]})")
    near = difflib.get_close_matches(kind, kinds.schemas, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    if kinds.other is None:
        raise ConfigError(f"{where}={kind}: {hint}expected {' | '.join(kinds.schemas)}")
    if not _defines(kind):
        raise ConfigError(
            f"{where}={kind}: no such class; {hint}write it as package.module.Class, installed or in this folder"
        )
    return _validate_fields(value, kinds.other, key, open_=True)


def _validate_fields(
    value: Mapping[str, Any], schema: type, key: str, *, open_: bool, note: str = ""
) -> dict[str, Any]:
    hints = get_type_hints(schema, include_extras=True)
    prefix = f"{key}." if key else ""
    if not open_:
        for name in value:
            if name not in hints:
                raise unknown_key(f"{prefix}{name}", hints, note)
    optional = {field.name for field in dataclasses.fields(schema) if field.default is not dataclasses.MISSING}
    for name in hints:
        if name not in value and name not in optional:
            raise ConfigError(f"{prefix}{name} is missing: add it to the YAML file of `{key or 'the job'}`")
    checked = {name: validate(value[name], hint, f"{prefix}{name}") for name, hint in hints.items() if name in value}
    return {name: checked.get(name, value[name]) for name in value}  # in the order of the YAML


def _convert(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _convert(value, args[0])
        if not all(extra.holds(value) for extra in args[1:] if isinstance(extra, Limit)):
            raise _Mismatch
        return value
    if origin in (Union, types.UnionType):
        for part in args:
            try:
                return _convert(value, part)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is Literal:
        if any(value == part and type(value) is type(part) for part in args):
            return value
        raise _Mismatch
    if origin in (tuple, list):
        parts = args if origin is tuple else args * len(value) if isinstance(value, list) else ()
        if not isinstance(value, list) or len(parts) != len(value):
            raise _Mismatch
        return [_convert(item, part) for item, part in zip(value, parts, strict=True)]
    if origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise _Mismatch
    if hint is float and type(value) is int:
        return float(value)
    if (hint is type(None) and value is None) or (hint is not type(None) and type(value) is hint):
        if hint is float and not math.isfinite(value):
            raise _Mismatch
        return value
    raise _Mismatch


def _defines(target: str) -> bool:
    """Whether the source of `package.module.Class` is found and defines the class; nothing of it is imported."""
    module, _, name = target.rpartition(".")
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or spec.origin is None:
        return False
    path = Path(spec.origin)
    if rest:
        path = path.parent.joinpath(*rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.suffix != ".py" or (
        path.is_file() and re.search(rf"\b{re.escape(name)}\b", path.read_text(encoding="utf-8")) is not None
    )


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a group of settings"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value == "":
        return "nothing"
    return describe(type(value))


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_fits(path: Path, stored: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse a checkpoint of another network or optimizer than the config's.

    Raises:
        CheckpointError: names the first setting that changes the network, or the optimizer's state, and differs.
    """
    theirs, ours = _kept(stored), _kept(config)
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise CheckpointError(
                f"{path} was trained with {key}={theirs.get(key)}, this run has {ours.get(key)}; "
                "resume without this change, or start a new run"
            )


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run may not change, by dotted key."""
    backbone = config["model"].get("backbone") or {}  # a network of the user's own may have none
    model = config["model"] | {f"backbone.{key}": value for key, value in backbone.items()}
    free = {"name", "pretrained", "init", "dropout", "num_edge_points", "backbone"}
    kept = {f"model.{key}": value for key, value in model.items() if key not in free}
    return kept | {"optimizer.name": config["optimizer"]["name"]}
