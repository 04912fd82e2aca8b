"""The base class of every group of settings, and how the kinds of a group are told apart."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag, model_serializer
from pydantic_core import CoreSchema

CUSTOM = "custom"  # the kind of a `_target_` that pfseg doesn't ship


def _key(name: str) -> str:
    return "_target_" if name == "target" else name


class Settings(BaseModel):
    """A group of settings. Every key must be given: defaults are in conf/."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, alias_generator=_key)

    def dump(self) -> dict[str, Any]:
        """The settings as plain dictionaries, lists and scalars, as YAML and JSON hold them."""
        return self.model_dump(mode="json", by_alias=True)

    def values(self) -> dict[str, Any]:
        """Each setting by its name, nested groups as they are; a `_target_` is left out."""
        names = [name for name in type(self).model_fields if name != "target"]
        return {name: getattr(self, name) for name in names} | (self.model_extra or {})


def setting(description: str, **limits: float) -> Any:
    """Document a setting in one line."""
    return Field(description=description, **limits)  # type: ignore[call-overload]


class Target(Settings):
    """A class or function, named by `_target_`, and its keywords; `shipped` says which one of pfseg's own, if any."""

    shipped: ClassVar[str | None] = None
    target: str = setting("class or function, as package.module.Name")

    def __init_subclass__(cls, *, shipped: str | None = None, **options: Any) -> None:
        """Take the class keyword `shipped`, which subclasses don't inherit."""
        super().__init_subclass__(**options)
        cls.shipped = shipped


class CustomTarget(Target, extra="allow"):
    """A class or function of the user's own, with whatever keywords it takes."""


class Several(Settings, extra="allow"):
    """Any of the groups that are its fields, classes of the user's own by other names, or none."""

    __pydantic_extra__: dict[str, CustomTarget] = Field(init=False)

    def chosen(self) -> dict[str, Settings]:
        """Those that were chosen, by name."""
        return {name: value for name, value in self.values().items() if value is not None}

    @model_serializer
    def _serialize(self) -> dict[str, object]:
        return {name: value.dump() for name, value in self.chosen().items()}


def members(hint: object) -> dict[str, type[Settings]]:
    """The classes of settings that a type stands for by the tags that tell them apart; none for plain values.

    A tag is a `_target_` or a literal `name`; CUSTOM for any other `_target_`, "" for a class that needs none.
    """
    if isinstance(hint, type) and issubclass(hint, Settings):
        if issubclass(hint, Target):
            return {hint.shipped or CUSTOM: hint}
        name = hint.model_fields.get("name")
        return dict.fromkeys(get_args(name.annotation) if name else (), hint) or {"": hint}
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return {tag: kind for part in get_args(hint) for tag, kind in members(part).items()}
    return {}


def tag_key(kinds: Mapping[str, type[Settings]]) -> str:
    """The key that tells kinds apart."""
    return "_target_" if any(issubclass(kind, Target) for kind in kinds.values()) else "name"


def tag_of(node: Mapping[str, object], kinds: Collection[str], key: str) -> str | None:
    """The tag of a group of settings, which may be none of the kinds'; None for a group that names no kind."""
    tag = node.get(key)
    if not isinstance(tag, str):
        return None
    return CUSTOM if tag not in kinds and CUSTOM in kinds else tag


class _Kinds:
    """Has pydantic choose among the classes of a union by their tags."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = members(source)
        key = tag_key(kinds)

        def tell(value: object) -> str | None:
            if isinstance(value, Settings):
                value = {key: getattr(value, "target" if key == "_target_" else key)}
            return tag_of(value, kinds, key) if isinstance(value, dict) else None

        options = tuple(Annotated[kind, Tag(tag)] for tag, kind in kinds.items())
        return handler.generate_schema(Annotated[Union[options], Discriminator(tell)])  # noqa: UP007


KINDS = _Kinds()  # marks a union of kinds: Annotated[Sgd | Adam, KINDS]
