"""Types of settings: numbers with ranges, sizes, choices."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import AfterValidator, BeforeValidator, ConfigDict
from typing_extensions import Doc, TypedDict


def _pair(value: object) -> object:
    if type(value) is int:
        return value, value
    return tuple(value) if isinstance(value, list) else value


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected [low, high] in this order")
    return bounds


def _apart(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("expected [low, high] with low < high")
    return bounds


def _box(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if bounds[0] >= bounds[2] or bounds[1] >= bounds[3]:
        raise ValueError("expected [left, bottom, right, top] with left < right and bottom < top")
    return bounds


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Percent = Annotated[float, Ge(0), Le(100)]
Contrast = Annotated[float, Gt(0), Le(127)]
OwnContrast = Contrast | Literal["own"]
Count = Annotated[int, Ge(1)]
Groups = Annotated[int, Ge(32), MultipleOf(32)]
Dilations = Annotated[list[Count], MaxLen(6), Doc("up to 6 whole numbers of at least 1 in brackets")]
Natural = Annotated[int, Ge(0)]
Ignored = Annotated[int, Ge(255), Le(255)]
Seed = Annotated[int, Ge(0), Lt(2**31)]
ScaleRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
Scales = Annotated[list[Positive], MinLen(1), Doc("one or more numbers above 0 in brackets")]
Percentiles = Annotated[tuple[Percent, Percent], AfterValidator(_apart)]
Apart = Annotated[tuple[float, float], AfterValidator(_apart)]
Bounds = Annotated[
    tuple[float, float, float, float], AfterValidator(_box), Doc("four numbers in brackets: left, bottom, right, top")
]
Bands = Annotated[tuple[Natural, ...], MinLen(1), Doc("numbers of bands in brackets, from 0")]


ThreeBands = tuple[Natural, Natural, Natural]
BandMeans = Annotated[tuple[float, ...], MinLen(1), Doc("numbers in brackets, one for each band")]
BandDeviations = Annotated[tuple[Positive, ...], MinLen(1), Doc("numbers above 0 in brackets, one for each band")]


class SharedPercentiles(TypedDict):
    """Percentiles over a training split."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    percentiles: Percentiles


class SharedRange(TypedDict):
    """Fixed numbers, for all bands or a pair for each."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    range: Apart | list[Apart]


Stretch = Percentiles | SharedPercentiles | SharedRange
Size = Annotated[
    tuple[Count, Count],
    Doc("a whole number of at least 1 or 2 values in brackets, each a whole number of at least 1"),
    BeforeValidator(_pair),
]
Splits = dict[str, str | list[str] | int | float]
IgnoreEntry = int | str | list[int]
Gpus = Literal["auto"] | Natural | list[Natural]
Ranks = Literal["auto"] | Count
Workers = Literal["auto"] | Natural
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Flips = Literal["none", "h", "v", "hv", "d4"]
Variant = Literal["pytorch", "jittor"]
Split = Literal["train", "val", "test"]
