"""Imports run downwards: a module imports those of its own room, and of the rooms below it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # from the ground up; a room imports those below it
    ("errors", "__version__"),
    ("files", "signals"),
    ("compiler", "devices", "metrics", "toolkit"),
    ("data", "runtime"),
    ("weights",),
    ("config",),
    ("tracking",),
    ("ops", "reporting"),
    ("launch",),
    ("models", "losses"),
    ("inference",),
    ("engine", "export", "prediction"),
    ("build_data",),
    ("build",),
    ("jobs", "__init__"),
    ("commands",),
    ("__main__",),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
WITH_JITTOR = {
    "runtime",
    "ops",
    "models",
    "losses",
    "weights",
    "inference",
    "engine",
    "export",
    "prediction",
    "build",
    "jobs",
}
FILES = [*sorted((ROOT / "pfseg").rglob("*.py")), ROOT / "train.py", ROOT / "evaluate.py"]


def imports(path: Path) -> Iterator[str]:
    """What a file imports when it is itself imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The room of a module: `commands` for pfseg.commands.train, and for train.py beside the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pfseg" and len(parts) > 1 else "__init__" if parts[0] == "pfseg" else "commands"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path: Path):
    own = room(module_name(path))
    for name in imports(path):
        if name.startswith("pfseg.") and room(name) != own:
            assert LEVELS[room(name)] < LEVELS[own], f"{path} imports {name}"
        if own not in WITH_JITTOR and own != "__init__":
            assert not name.startswith(("jittor", "pfseg.runtime")), f"{path} imports {name}"
        if name.startswith(("hydra", "omegaconf")):
            assert own in ("config", "commands"), f"{path} takes a configuration object"
        assert not name.startswith("hydra._internal"), f"{path} uses Hydra's private modules"


def test_no_module_imports_itself_in_a_circle():
    names = {module_name(path): path for path in FILES}
    graph = {}
    del names["pfseg"]  # loads the model API on first use
    for name, path in names.items():
        found = set()
        for given in imports(path):
            target = given if given in names else given.rpartition(".")[0]
            found |= {target} if target in names and target != name else set()
        graph[name] = found
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_commands_are_short():
    assert all(len((ROOT / name).read_text().splitlines()) <= 40 for name in ("train.py", "evaluate.py"))


def test_modules_are_short():
    long = {path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert not long
