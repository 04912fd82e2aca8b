"""Kinds of settings: told apart by `_target_` or `name`, and written as they were read."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest

from pfseg.config.settings import CUSTOM, KINDS, CustomTarget, Settings, Target, members, setting
from pfseg.config.validation import validate
from pfseg.errors import ConfigError


class Round(Target, shipped="shapes.Round"):
    radius: int = setting("radius in pixels")


class Thick(Round):
    width: int = setting("width of its line")


class Fast(Settings):
    name: Literal["fast", "faster"] = setting("kind of the pace")


class Slow(Settings):
    name: Literal["slow"] = setting("kind of the pace")
    pause: int = setting("seconds of rest")


class Drawing(Settings):
    shape: Annotated[Round | CustomTarget, KINDS]
    pace: Annotated[Fast | Slow, KINDS] | None


def test_the_members_of_a_type_by_what_tells_them_apart():
    assert members(Annotated[Round | CustomTarget, KINDS]) == {"shapes.Round": Round, CUSTOM: CustomTarget}
    assert members(Annotated[Fast | Slow, KINDS] | None) == {"fast": Fast, "faster": Fast, "slow": Slow}
    assert members(Drawing) == {"": Drawing} and members(int | None) == {}


def test_a_subclass_is_not_what_its_base_ships():
    assert members(Thick) == {CUSTOM: Thick}


@pytest.mark.parametrize(
    ("shape", "pace", "kinds"),
    [
        ({"_target_": "shapes.Round", "radius": 3}, None, (Round, type(None))),
        ({"_target_": "fractions.Fraction", "numerator": 3}, {"name": "faster"}, (CustomTarget, Fast)),
        ({"_target_": "fractions.Fraction"}, {"name": "slow", "pause": 1}, (CustomTarget, Slow)),
    ],
)
def test_a_group_becomes_its_kind_and_is_written_as_it_was(shape: object, pace: object, kinds: tuple[type, type]):
    drawing = validate({"shape": shape, "pace": pace}, Drawing)
    assert (type(drawing.shape), type(drawing.pace)) == kinds
    assert drawing.dump() == {"shape": shape, "pace": pace}


@pytest.mark.parametrize(
    ("shape", "pace", "text"),
    [
        ({"radius": 3}, None, "^shape._target_ is missing: add it to the YAML file of `shape`$"),
        ({"_target_": 3}, None, "^shape._target_=3: expected text, got a whole number$"),
        ({"_target_": "shapes.Round", "radus": 3}, None, r"^unknown key `shape.radus`: did you mean `shape.radius`\?"),
        ({"_target_": "shapes.Round"}, None, "^shape.radius is missing: add it to the YAML file of `shape`$"),
        (3, None, "^shape=3: expected a group of settings, got a whole number$"),
        (
            {"_target_": "fractions.Fraction"},
            {"name": "slo"},
            r"^pace.name=slo: did you mean `slow`\? expected fast \| ",
        ),
        (
            {"_target_": "fractions.Fraction"},
            {"name": "slow", "pause": "x"},
            "^pace.pause=x: expected a whole number, ",
        ),
        ({"_target_": "fractions.Faction"}, None, "^shape._target_=fractions.Faction: no such class; "),
    ],
)
def test_what_is_of_no_kind_is_named(shape: object, pace: object, text: str):
    with pytest.raises(ConfigError, match=text):
        validate({"shape": shape, "pace": pace}, Drawing)


def test_a_key_that_is_missing_at_the_top():
    with pytest.raises(ConfigError, match=r"^pace is missing: add it to the YAML file of the command$"):
        validate({"shape": {"_target_": "fractions.Fraction"}}, Drawing)
