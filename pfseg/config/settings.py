"""The base class of every group of settings, and how the kinds of a group are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Union, cast, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_serializer

CUSTOM = "custom"  # the kind of a `_target_` that pfseg doesn't ship


class Settings(BaseModel):
    """A group of settings. Every key must be given: defaults are in conf/."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

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


class Target(Settings, extra="allow"):
    """A class or function of the user's own, with whatever keywords it takes."""

    target: str = Field(alias="_target_", description="class or function, as package.module.Name")


class Several(Settings, extra="allow"):
    """Any of the groups that are its fields, classes of the user's own by other names, or none."""

    __pydantic_extra__: dict[str, Target] = Field(init=False)

    def chosen(self) -> dict[str, Settings]:
        """Those that were chosen, by name."""
        return {name: value for name, value in self.values().items() if value is not None}

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        return {name: value.dump() for name, value in self.chosen().items()}


@dataclass(frozen=True)
class KindOf:
    """Tells the kinds of a group apart by a key, `_target_` or `name`; any other `_target_` is a custom one."""

    key: str
    kinds: tuple[str, ...]
    __name__ = "kind"  # pydantic names it in its own errors

    def __call__(self, value: Any) -> str | None:
        """The kind of a group of settings; None for one that doesn't name any."""
        if isinstance(value, Settings):
            kind = getattr(value, "target" if self.key == "_target_" else self.key)
        else:
            kind = value.get(self.key) if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind in self.kinds:
            return cast(str | None, kind)
        return CUSTOM if self.key == "_target_" else None


def by_target(*targets: str) -> Discriminator:
    """Tell classes apart by `_target_`, for pydantic."""
    return Discriminator(KindOf("_target_", targets))


def literal_target(kind: Any) -> tuple[str, ...]:
    """The `_target_` of a class of settings that is of one class only."""
    return get_args(kind.model_fields["target"].annotation)


def one_of(custom: type[Settings], *kinds: type[Settings]) -> Any:
    """The type of a group that is of one of the kinds, told apart by their literal `_target_`, or of a custom one."""
    tagged = {name: kind for kind in kinds for name in literal_target(kind)}
    options = tuple(Annotated[kind, Tag(name)] for name, kind in (tagged | {CUSTOM: custom}).items())
    return Annotated[Union[options], by_target(*tagged)]  # noqa: UP007
