"""Checks of a group of settings against its class, with errors of one line that name the key and the remedy."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import Doc

from pfseg.config.settings import CUSTOM, Settings, Target, members, tag_key, tag_of
from pfseg.config.targets import check_target
from pfseg.errors import ConfigError

S = TypeVar("S", bound=Settings)
_LIMITS = {"gt": "above", "ge": "of at least", "le": "of at most", "lt": "below"}
_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def validate(raw: Mapping[str, object], schema: type[S], *, targets: bool = True) -> S:
    """Typed settings from plain dictionaries, lists and scalars; `targets`: whether the user's own classes must exist.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a number out of range, or a class that doesn't exist.
    """
    try:
        checked = schema.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        details = sorted(error.errors(), key=lambda each: each["type"] != "value_error")  # which say most
        faults = [_fault(each, raw, schema) for each in details]
        raise min(faults, key=lambda fault: not str(fault).startswith("unknown key")) from None
    if targets:
        _check_targets(checked, "")
    return checked


def nearest(name: str, names: Iterable[str], form: str = "{}") -> str:
    """The question whether the nearest of `names`, in a form such as `group={}`, was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"did you mean `{form.format(near[0])}`? " if near else ""


def unknown_key(key: str, known: Iterable[str], note: str = "") -> ConfigError:
    """The error for a key that its group doesn't have, naming the nearest of those that it has."""
    group, _, name = key.rpartition(".")
    names = sorted(known)
    hint = nearest(name, names, f"{group}.{{}}" if group else "{}")
    where = f" of {group}" if group else ""
    return ConfigError(f"unknown key `{key}`: {hint}known keys{where}{note}: {', '.join(names)}")


def describe(hint: object) -> str:
    """A type in words, such as "a whole number of at least 1 or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        text = next((extra.documentation for extra in args[1:] if isinstance(extra, Doc)), None)
        return text or describe(args[0]) + _range(args[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, args)))
    if origin is Literal:
        return " | ".join(str(part) for part in args)
    if origin is tuple:
        return f"{len(args)} values in brackets, each {describe(args[0])}"
    if origin is list:
        return "a list in brackets" + ("" if args[0] is Any else f", each {describe(args[0])}")
    return _NAMES.get(hint, "a group of settings")


def _range(extras: Iterable[object]) -> str:
    """The limits of a number in words, to follow "a number"."""
    bounds = {name: getattr(extra, name) for extra in extras for name in _LIMITS if hasattr(extra, name)}
    if "ge" in bounds and bounds["ge"] == bounds.get("le"):
        return f" equal to {bounds['ge']:.12g}"
    return " and".join(f" {word} {bounds[name]:.12g}" for name, word in _LIMITS.items() if name in bounds)


def field_type(field: FieldInfo) -> object:
    """The type of a field with its limits, which pydantic keeps apart."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def as_typed(value: object) -> str:
    """A setting as on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def description(schema: type[Settings], raw: Mapping[str, Any], key: str) -> str:
    """The documentation of the setting with a dotted key, in settings that hold the values `raw`."""
    group, _, rest = key.partition(".")
    field = _fields(schema).get(group)
    if field is not None and rest:
        return description(_kind_of(members(field_type(field)), raw[group])[0], raw[group], rest)
    return field.description or "value" if field else "value"


def _fault(error: ErrorDetails, node: Mapping[str, object], kind: type[Settings]) -> ConfigError:
    """An error of pydantic in one line; `node` holds the values that are no settings of class `kind`."""
    path, note = "", ""
    for part in map(str, error["loc"]):
        fields = _fields(kind)
        if part not in node and part not in fields:  # the tag of a kind
            continue
        group, path = path, f"{path}.{part}" if path else part
        if part not in fields:
            return unknown_key(path, fields, note)
        if part not in node:
            return ConfigError(
                f"{path} is missing: add it to the YAML file of {f'`{group}`' if group else 'the command'}"
            )
        value, hint = node[part], field_type(fields[part])
        if not (kinds := members(hint)) or not isinstance(value, Mapping):
            fault = str(error["ctx"]["error"]) if error["type"] == "value_error" else _expected(value, hint)
            return ConfigError(f"{path}={as_typed(value)}: {fault}")
        if error["type"].startswith("union_tag") and tag_of(value, kinds, tag_key(kinds)) not in kinds:
            return _unknown_kind(path, value, kinds)
        node, (kind, note) = value, _kind_of(kinds, value)
    return ConfigError(f"{path}: {error['msg']}")


def _expected(value: object, hint: object) -> str:
    expected = "a group of settings" if members(hint) else describe(hint)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and "number" in expected
    return f"expected {expected}" + ("" if plain else f", got {_type_of(value)}")  # a number of the wrong size speaks


def _unknown_kind(group: str, node: Mapping[str, object], kinds: Mapping[str, type[Settings]]) -> ConfigError:
    key = tag_key(kinds)
    where, tag = f"{group}.{key}", node.get(key)
    if tag is None:
        return ConfigError(f"{where} is missing: add it to the YAML file of `{group}`")
    if not isinstance(tag, str):
        return ConfigError(f"{where}={as_typed(tag)}: expected text, got {_type_of(tag)}")
    return ConfigError(f"{where}={tag}: {nearest(tag, kinds)}expected {' | '.join(kinds)}")


def _fields(group: type[Settings]) -> dict[str, FieldInfo]:
    """The settings of a group by their keys."""
    return {field.alias or name: field for name, field in group.model_fields.items()}


def _kind_of(kinds: Mapping[str, type[Settings]], node: Mapping[str, object]) -> tuple[type[Settings], str]:
    """The class of settings that a group is of, the first one if of none, and a note that names its kind."""
    tag = tag_of(node, kinds, tag_key(kinds))
    if tag is None or tag not in kinds:
        return next(iter(kinds.values())), ""
    return kinds[tag], "" if tag in ("", CUSTOM) else f" ({tag.rpartition('.')[2]})"


def _type_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "a group of settings"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value == "" else describe(type(value))


def _check_targets(settings: Settings, key: str) -> None:
    """Raise ConfigError for a `_target_` below `settings` that can't be imported."""
    for name, value in settings.values().items():
        if isinstance(value, Settings):
            _check_targets(value, f"{key}{name}.")
    shipped = [kind.shipped for kind in _subclasses(Target) if kind.shipped]
    if isinstance(settings, Target) and settings.target not in shipped:
        check_target(settings.target, f"{key}_target_", nearest(settings.target, shipped))


def _subclasses(kind: type[Target]) -> Iterator[type[Target]]:
    for below in kind.__subclasses__():
        yield from (below, *_subclasses(below))
