"""Imports run downwards: a module may import those of a lower level, and of its own package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = {
    **dict.fromkeys(("errors", "__version__"), 0),
    **dict.fromkeys(("devices", "provenance", "metrics", "boundary", "validate"), 1),
    **dict.fromkeys(("runtime", "data", "launch_schema", "lease", "mpirun"), 2),
    **dict.fromkeys(("models", "checks", "schema", "heartbeat"), 3),
    **dict.fromkeys(("losses", "tracking", "command_schemas", "resume"), 4),
    **dict.fromkeys(("engine", "worker", "reporting"), 5),
    **dict.fromkeys(("launch", "multirun", "prediction", "slurm"), 6),
    "config": 7,
    "build": 8,
    **dict.fromkeys(("evaluation", "driver"), 9),
    **dict.fromkeys(("train", "evaluate", "prepare", "preview", "report", "reproduce", "convert", "__init__"), 10),
    **dict.fromkeys(("predict", "profile", "dashboard"), 10),
}
# A rank enters by the worker, which hands over to build, and build hands an evaluation to its module;
# `pfseg.create_model` is loaded on first use.
UPWARDS = {("worker", "build"), ("build", "evaluation"), ("__init__", "models")}
NO_JITTOR = {name for name in LEVELS if name not in ("runtime", "models", "losses", "engine", "build", "evaluation")}
CONFIGURED = ("config", "resume", "build", "driver", "train", "evaluate")
FILES = [*sorted((ROOT / "pfseg").rglob("*.py")), ROOT / "train.py", ROOT / "evaluate.py"]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path: Path):
    part = path.relative_to(ROOT / "pfseg").parts[0] if path.is_relative_to(ROOT / "pfseg") else path.name
    part = part.removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "pfseg" and rest and (part, rest[0]) not in UPWARDS:
            assert rest[0] == part or LEVELS[rest[0]] < LEVELS[part], f"{path} imports {name}"
        if part in NO_JITTOR:
            assert top != "jittor" and rest[:1] != ["runtime"], f"{path} imports {name}"
        if top in ("hydra", "omegaconf"):
            assert part in ("config", "resume", "driver", "train", "evaluate", "build"), (
                f"{path} takes a configuration object"
            )


def test_commands_are_short():
    assert all(len((ROOT / name).read_text().splitlines()) <= 40 for name in ("train.py", "evaluate.py"))


def test_modules_are_short():
    long = {path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert not long
