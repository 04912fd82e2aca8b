"""Checks of a group of settings against its class, with errors of one line that name the key and the remedy."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Tag, ValidationError, create_model
from pydantic.fields import FieldInfo
from typing_extensions import Doc

from pfseg.config.data_settings import AnyAugment, DatasetSettings
from pfseg.config.loss_settings import LossSettings, Segmentation, Terms
from pfseg.config.model_settings import Backbone, ModelSettings
from pfseg.config.settings import CUSTOM, KindOf, Settings, Several, literal_target
from pfseg.config.targets import check_target
from pfseg.errors import ConfigError

S = TypeVar("S", bound=Settings)
_LIMITS = {"gt": "above", "ge": "of at least", "le": "of at most", "lt": "below"}
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def validate(raw: Mapping[str, Any], schema: type[S], *, targets: bool = True) -> S:
    """Typed settings from plain dictionaries, lists and scalars; `targets`: whether the user's own classes must exist.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a number out of range, or a class that doesn't exist.
    """
    try:
        checked = schema.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        faults = sorted(_faults(raw, schema), key=lambda fault: not str(fault).startswith("unknown key"))
        raise faults[0] if faults else ConfigError(str(error)) from None
    if targets:
        _check_targets(checked, "")
    return checked


def nearest(name: str, names: Iterable[str], form: str = "{}", cutoff: float = 0.6) -> str:
    """The question whether the nearest of `names`, in a form such as `group={}`, was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff)
    return f"did you mean `{form.format(near[0])}`? " if near else ""


def unknown_key(key: str, known: Iterable[str], note: str = "") -> ConfigError:
    """The error for a key that its group doesn't have, naming the nearest of those that it has."""
    group, _, name = key.rpartition(".")
    names = sorted(known)
    hint = nearest(name, names, f"{group}.{{}}" if group else "{}")
    where = f" of {group}" if group else ""
    return ConfigError(f"unknown key `{key}`: {hint}known keys{where}{note}: {', '.join(names)}")


def describe(hint: Any) -> str:
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


def _range(extras: Iterable[Any]) -> str:
    """The limits of a number in words, to follow "a number"."""
    bounds = {name: getattr(extra, name) for extra in extras for name in _LIMITS if hasattr(extra, name)}
    if "ge" in bounds and bounds["ge"] == bounds.get("le"):
        return f" equal to {bounds['ge']:.12g}"
    return " and".join(f" {word} {bounds[name]:.12g}" for name, word in _LIMITS.items() if name in bounds)


def field_type(field: FieldInfo) -> Any:
    """The type of a field with its limits, which pydantic keeps apart."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def members(hint: Any) -> list[tuple[str | None, type[Settings]]]:
    """The classes of settings that a type stands for, each with the kind that it is; none for plain values."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        names = get_args(hint.model_fields["name"].annotation) if "name" in hint.model_fields else ()
        return [(name, hint) for name in names or (None,)]
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        tags = [extra.tag for extra in extras if isinstance(extra, Tag)]
        return [(tags[0] if tags else tag, member) for tag, member in members(base)]
    if get_origin(hint) in (Union, types.UnionType):
        return [found for part in get_args(hint) for found in members(part)]
    return []


def as_typed(value: object) -> str:
    """A setting as on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def description(schema: type[Settings], raw: Any, key: str) -> str:
    """The documentation of the setting with a dotted key, in settings that hold the values `raw`."""
    group, _, rest = key.partition(".")
    field = _fields(schema).get(group)
    if field is not None and rest:
        return description(_chosen(field_type(field), raw[group])[0], raw[group], rest)
    return field.description or "value" if field else "value"


def _faults(raw: Mapping[str, Any], schema: type[Settings], group: str = "", note: str = "") -> Iterator[ConfigError]:
    """All that is wrong with a group of settings; `note` says of which kind it is."""
    fields, prefix = _fields(schema), f"{group}." if group else ""
    for key in raw:
        others_fit = not issubclass(schema, Several) or (isinstance(raw[key], Mapping) and "_target_" in raw[key])
        if key not in fields and not (schema.model_config.get("extra") == "allow" and others_fit):
            yield unknown_key(f"{prefix}{key}", fields, note)
    for key, field in fields.items():
        where, value, hint = f"{prefix}{key}", raw.get(key), field_type(field)
        if key not in raw:
            if field.is_required():
                yield ConfigError(f"{where} is missing: add it to the YAML file of `{group or 'the job'}`")
        elif isinstance(value, Mapping) and members(hint):
            kinds = _kinds(hint)
            if kinds is not None and kinds(value) is None:
                yield _unknown_kind(where, value, kinds)
            else:
                chosen, name = _chosen(hint, value)
                yield from _faults(value, chosen, where, name)
        elif (fault := _value_fault(value, hint)) is not None:
            yield ConfigError(f"{where}={as_typed(value)}: {fault}")


def _value_fault(value: Any, hint: Any) -> str | None:
    """What is wrong with a value; None if nothing is."""
    try:
        holder = create_model("Holder", __base__=Settings, value=(hint, ...))
        holder.model_validate_json(json.dumps({"value": value}, default=str))
        return None
    except ValidationError as error:
        fault = error.errors()[0]
    if fault["type"] == "value_error":  # of a validator of ours
        return str(fault["ctx"]["error"])
    expected = "a group of settings" if members(hint) else describe(hint)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and "number" in expected
    return f"expected {expected}" + ("" if plain else f", got {_kind(value)}")  # a number of the wrong size speaks


def _unknown_kind(key: str, node: Mapping[str, Any], kinds: KindOf) -> ConfigError:
    where, kind = f"{key}.{kinds.key}", node.get(kinds.key)
    if kind is None:
        return ConfigError(f"{where} is missing: add it to the YAML file of `{key}`")
    if not isinstance(kind, str):
        return ConfigError(f"{where}={as_typed(kind)}: expected text, got {_kind(kind)}")
    return ConfigError(f"{where}={kind}: {nearest(kind, kinds.kinds)}expected {' | '.join(kinds.kinds)}")


def _fields(group: type[Settings]) -> dict[str, FieldInfo]:
    """The settings of a group by their keys."""
    return {field.alias or name: field for name, field in group.model_fields.items()}


def _chosen(hint: Any, node: Any) -> tuple[type[Settings], str]:
    """The class of settings that a group is of, and a note that names its kind."""
    classes, kinds = members(hint), _kinds(hint)
    tag = kinds(node) if kinds else None
    chosen = next((member for name, member in classes if name == tag), classes[0][1])
    return chosen, "" if tag in (None, CUSTOM) else f" ({str(tag).rpartition('.')[2]})"


def _kinds(hint: Any) -> KindOf | None:
    """What tells the kinds of a type apart; None for a type without kinds."""
    tags = [tag for tag, _ in members(hint) if tag]
    return (
        KindOf("_target_" if CUSTOM in tags else "name", tuple(tag for tag in tags if tag != CUSTOM)) if tags else None
    )


def _kind(value: Any) -> str:
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
    target = getattr(settings, "target", None)
    if target is not None and target not in _shipped():
        check_target(target, f"{key}_target_", nearest(target, _shipped()))


@cache
def _shipped() -> list[str]:
    """The classes that pfseg ships, as `_target_` names them."""
    groups = (DatasetSettings, AnyAugment, ModelSettings, Backbone, LossSettings, Segmentation)
    terms = [name for field in Terms.model_fields.values() for name in literal_target(field.annotation)]
    return [tag for hint in groups for tag, _ in members(hint) if tag and tag != CUSTOM] + terms
