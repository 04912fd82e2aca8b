"""All settings with their types, values and documentation, for `pfseg settings` and the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from pfseg.config.commands import SCHEMAS
from pfseg.config.compose import compose
from pfseg.config.settings import CUSTOM, Settings
from pfseg.config.validation import describe, field_type, members, show

# The choice of each group whose values are shown for a kind; the first where a kind has several.
_CHOICES = {
    "dataset": ("folder", "synthetic"),
    "model": ("pfnet_r50",),
    "model/backbone": ("resnet50", "res2net101"),
    "loss": ("pfnet", "image_weighted", "relaxed"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("poly", "scl_poly", "cosine", "constant"),
    "augment": ("published",),
    "logger": ("[wandb,tensorboard]",),
    "launch": ("mpi", "slurm", "inline"),
}


class Row(NamedTuple):
    """One setting.

    Attributes:
        command: that takes it, such as train.
        choice: of its group, such as optimizer=sgd; empty for settings of every choice.
        key: dotted, such as optimizer.lr.
        type: in words, with its range.
        value: what conf/ sets it to; empty where it must be given.
        doc: one line.
    """

    command: str
    choice: str
    key: str
    type: str
    value: str
    doc: str


def reference(commands: tuple[str, ...] = tuple(SCHEMAS)) -> list[Row]:
    """The settings of commands; those that a preview shares with a training are listed once, with the training's."""
    rows: list[Row] = []
    for command in commands:
        seen = {row.key for row in rows if row.command == "train"} if command == "preview" else set()
        rows += [row for row in _command(command) if row.key not in seen]
    return rows


def _command(command: str) -> Iterator[Row]:
    schema = SCHEMAS[command]
    values = _values(command, ())
    nested = []
    for name, field in schema.model_fields.items():
        key = field.alias or name
        if members(field_type(field)):
            nested.append((key, field))
        else:
            yield _row(command, "", key, field, values.get(key))
    for key, field in nested:
        yield from _group(command, key, field, values)


def _group(command: str, key: str, field: FieldInfo, values: Mapping[str, Any], choice: str = "") -> Iterator[Row]:
    """The settings of a group: each kind with the values of its first choice."""
    kinds = [(tag, schema) for tag, schema in members(field_type(field)) if tag != CUSTOM]
    done: list[type[Settings]] = []
    for tag, schema in kinds:
        if schema in done:
            continue
        done.append(schema)
        tags = {name for name, other in kinds if other is schema}
        chosen, node = choice, _node(values, key)
        for option in _CHOICES.get(key.replace(".", "/"), ()) if tag is not None or key == "logger" else ():
            composed = _values(command, (f"{key.replace('.', '/')}={option}",))
            found = _node(composed, key)
            if tag is None or not isinstance(found, Mapping) or tags & {found.get("_target_"), found.get("name")}:
                chosen, node = f"{key.replace('.', '/')}={option}", found
                break
        for name, inner in schema.model_fields.items():
            part = f"{key}.{inner.alias or name}"
            value = node.get(inner.alias or name) if isinstance(node, Mapping) else None
            if members(field_type(inner)):
                context = values if chosen == choice else _values(command, (chosen,))
                yield from _group(command, part, inner, context, chosen)
            else:
                yield _row(command, chosen, part, inner, value)


@cache
def _values(command: str, overrides: tuple[str, ...]) -> Mapping[str, Any]:
    container = OmegaConf.to_container(compose(command, overrides), resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _node(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _row(command: str, choice: str, key: str, field: FieldInfo, value: Any) -> Row:
    text = "" if value == "???" else show(value)
    return Row(command, choice, key, describe(field_type(field)), text, field.description or "")
