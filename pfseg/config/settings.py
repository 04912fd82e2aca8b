"""What settings are made of: the base class of every group, and the types of their values.

The classes in `pfseg.config.schema` are the only place that declares a setting: its type, range, unit and one line of
documentation. The YAML files in conf/ hold its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field

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


class Target(Settings):
    """A class or function of the user's own, with whatever keywords it takes."""

    model_config = ConfigDict(extra="allow")

    target: str = Field(alias="_target_", description="class or function, as package.module.Name")


@dataclass(frozen=True)
class KindOf:
    """Tells the kinds of a group apart, for pydantic's `Discriminator`.

    Attributes:
        key: that names the kind: `name`, or `_target_`.
        kinds: its values for the kinds that pfseg ships.
    """

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
    """Tell classes apart by `_target_`; any that pfseg doesn't ship is a custom one."""
    return Discriminator(KindOf("_target_", targets))


def by_name(*names: str) -> Discriminator:
    """Tell kinds apart by their `name`."""
    return Discriminator(KindOf("name", names))


@dataclass(frozen=True)
class Words:
    """A type in words, where they can't be derived from the type."""

    text: str


def _pair(value: Any) -> Any:
    if type(value) is int:
        return value, value
    return tuple(value) if isinstance(value, list) else value


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Percent = Annotated[float, Ge(0), Le(100)]
Contrast = Annotated[float, Gt(0), Le(127)]
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Ignored = Annotated[int, Ge(255), Le(255)]
Seed = Annotated[int, Ge(0), Lt(2**31)]
Range = tuple[NonNegative, NonNegative]
Percentiles = tuple[Percent, Percent]
Bands = tuple[Natural, Natural, Natural]
Size = Annotated[
    tuple[Count, Count],
    Words("a whole number of at least 1 or 2 values in brackets, each a whole number of at least 1"),
    BeforeValidator(_pair),
]
Gpus = Literal["auto"] | Natural | list[Natural]
Ranks = Literal["auto"] | Count
Workers = Literal["auto"] | Natural
Flips = Literal["none", "h", "v", "hv", "d4"]
Variant = Literal["pytorch", "jittor"]
Split = Literal["train", "val", "test"]
