"""Completion in the shell: what `pfseg -sc install=bash` has bash run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def complete(line: str, *arguments: str) -> str:
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pfseg", "-sc", *(arguments or ("query=bash",))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("pfseg pre", ["predict", "prepare", "preview"]),
        ("pfseg train optimizer.l", ["optimizer.lr=", "optimizer.lr_factors."]),
        ("pfseg train dataset=isa", ["dataset=isaid"]),
        ("pfseg evaluate checkpoint=run fl", ["flips="]),
        ("pfseg settings tr", []),
        ("pfseg nothing tr", []),
    ],
)
def test_commands_and_settings_are_completed(line: str, found: list[str]):
    assert complete(line).split() == found


def test_completion_is_installed_without_a_command():
    assert "complete -o nospace -o default -F hydra_bash_completion" in complete("", "install=bash")
