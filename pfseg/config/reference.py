"""All settings with their types, values and documentation, for `pfseg settings` and the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from pfseg.config.commands import SCHEMAS
from pfseg.config.compose import compose, heads
from pfseg.config.settings import CUSTOM, Settings, members
from pfseg.config.validation import as_typed, describe, field_type

# The choice of each group whose values are shown for a kind; the first where a kind has several.
_CHOICES = {
    "dataset": ("folder", "synthetic"),
    "model/backbone": ("resnet50", "res2net101", "mscan_t", "convnext_t"),
    "loss": ("pfnet",),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("poly", "scl_poly", "cosine", "constant"),
    "augment": ("published",),
    "logger": ("[wandb,tensorboard]",),
    "launch": ("mpi", "slurm", "inline"),
}


class Row(NamedTuple):
    """One setting."""

    command: str  # that takes it, such as train
    choice: str  # of its group, such as optimizer=sgd; empty for settings of every choice
    key: str  # dotted, such as optimizer.lr
    type: str  # in words, with its range
    value: str  # what conf/ sets it to; empty where it must be given
    doc: str  # one line


def reference() -> list[Row]:
    """The settings of all commands; those that a preview shares with a training are listed with the training's only."""
    found = (row for command, schema in SCHEMAS.items() for row in _rows(command, "", schema, ""))
    rows = list(dict.fromkeys(found))  # every head has the same backbones
    trained = {row.key for row in rows if row.command == "train"}
    return [row for row in rows if row.command != "preview" or row.key not in trained]


def _rows(command: str, group: str, schema: type[Settings], choice: str) -> Iterator[Row]:
    """The settings of a group, then those of the groups in it, with the values of a choice."""
    nested = []
    values = _values(command, choice, group)
    for name, field in schema.model_fields.items():
        key, hint = field.alias or name, field_type(field)
        path = f"{group}.{key}" if group else key
        if members(hint).keys() - {CUSTOM}:
            nested.append((path, hint))
        else:
            value = values.get(key)
            shown = "" if value == "???" else as_typed(value)
            yield Row(command, choice, path, describe(hint), shown, field.description or "")
    for path, hint in nested:
        tags: dict[type[Settings], set[str]] = {}
        for tag, kind in members(hint).items():
            tags.setdefault(kind, set()).add(tag)
        for kind, names in tags.items():
            if CUSTOM not in names:
                yield from _rows(command, path, kind, _choice(command, path, names) or choice)


def _choice(command: str, group: str, kinds: set[str]) -> str:
    """The choice of a group that is of one of the kinds; empty for a group without choices."""
    if group.startswith("loss.terms."):
        return f"loss/term=[{group.rpartition('.')[2]}]"
    if kinds == {""} and group != "logger":  # such as the data set of an evaluation, which has no kind
        return ""
    models = ("segnext_t", "convnext_t_upernet", *(f"{head}_r50" for head in heads()))
    for option in models if group == "model" else _CHOICES.get(group.replace(".", "/"), ()):
        choice = f"{group.replace('.', '/')}={option}"
        values = _values(command, choice, group)
        if kinds == {""} or kinds & {values.get("_target_"), values.get("name")}:
            return choice
    return ""


def _values(command: str, choice: str, group: str) -> Any:
    """The values of a group in conf/; empty where it is null."""
    node = _composed(command, choice)
    for part in group.split(".") if group else ():
        node = node.get(part) or {}
    return node


@cache
def _composed(command: str, choice: str) -> Any:
    return OmegaConf.to_container(compose(command, [choice] if choice else []))
