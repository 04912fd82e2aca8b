"""The settings of a run as a tree for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pfseg.data.base import parse_classes
from pfseg.tracking.terminal import as_typed


def settings_tree(settings: Mapping[str, Any]) -> Tree:
    """Lay out a resolved configuration, with its `name` as the root."""
    tree = Tree(Text(str(settings.get("name", "pfseg")), style="bold"), guide_style="dim")
    _grow(tree, {key: value for key, value in settings.items() if key != "name"})
    return tree


def _grow(tree: Tree, values: Mapping[str, Any]) -> None:
    """Add the plain values packed into lines, then each group as a branch."""
    groups = {key: value for key, value in values.items() if isinstance(value, dict) and value}
    plain = Text()
    for key, value in values.items():
        if key == "classes" and isinstance(value, list) and value:
            text = Text(f"{len(value)} classes: ")
            for info in parse_classes(value):
                text.append("■ ", style=info.hex_color).append(f"{info.name}   ")
            tree.add(text)
        elif key not in groups:
            plain.append(f"{key}=", style="dim").append(as_typed(value)).append("  ")
    if plain:
        plain.rstrip()
        tree.add(plain)
    for key, value in groups.items():
        target = str(value.get("_target_", "")).rpartition(".")[2]
        label = Text.assemble((key, "bold cyan"), (f"  {target}" if target else "", "cyan"))
        _grow(tree.add(label), {k: v for k, v in value.items() if k != "_target_"})
