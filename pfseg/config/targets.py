"""Classes and functions that settings name by `_target_`: whether they exist, and calling them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pfseg.config.settings import Several, Target
from pfseg.errors import ConfigError


def instantiate(settings: Target, **given: object) -> Any:
    """Call what `_target_` names with the other settings and `given`; nested settings with a `_target_` come first.

    Raises ConfigError if the class doesn't exist, or its constructor rejects a value.
    """
    return call(settings.target, settings.values() | given)


def call(target: str, keywords: Mapping[str, object], *given: object, group: str = "") -> Any:
    """Call what the `_target_` of a group of settings names; see `instantiate`."""
    function = locate(target, f"{group}." if group else "")
    arguments = {key: _built(value) for key, value in keywords.items()}
    try:
        return function(*given, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{f'{group}: ' if group else ''}{target} can't be built: {error}") from error


def _built(value: object) -> object:
    if isinstance(value, Target) or (isinstance(value, Mapping) and "_target_" in value):
        return call(*named(value))
    if isinstance(value, Several):
        return {name: _built(part) for name, part in value.chosen().items()}
    return value


def named(node: Target | Mapping[str, Any]) -> tuple[str, dict[str, object]]:
    """The `_target_` and the keywords of a group of settings; below a custom class it is a mapping."""
    if isinstance(node, Target):
        return node.target, node.values()
    return node["_target_"], {key: value for key, value in node.items() if key != "_target_"}


def locate(target: str, group: str = "") -> Any:
    """The object that `package.module.Name` names; raises ConfigError if it can't be imported."""
    module, _, name = target.rpartition(".")
    where = f"{group}_target_={target}"
    try:
        return getattr(import_module(module), name)
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}:{error.lineno} isn't Python ({error.msg})") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where} can't be imported ({error}); give package.module.Class") from error


def check_target(target: str, key: str, hint: str) -> None:
    """Raise ConfigError if `package.module.Name` isn't found; its module is read, not imported."""
    module, _, name = target.rpartition(".")
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:
        spec = None
    path = Path(spec.origin) if spec and spec.origin else None
    if path and rest:
        path = path.parent.joinpath(*rest)
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if path is None or not path.is_file() or (path.suffix == ".py" and not _mentions(path, name, key, target)):
        raise ConfigError(
            f"{key}={target}: no such class; {hint}write it as package.module.Class, installed or in this folder"
        )


def _mentions(path: Path, name: str, key: str, target: str) -> bool:
    """Whether the source at `path` defines or imports `name`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line, fault = getattr(error, "lineno", None), getattr(error, "msg", error)
        where = f"{path}:{line}" if line else path
        raise ConfigError(f"{key}={target}: {where} can't be read as Python ({fault})") from error
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return True
        if isinstance(node, ast.ImportFrom) and any((part.asname or part.name) in (name, "*") for part in node.names):
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
    return False
