from __future__ import annotations

import subprocess
from pathlib import Path

from pfseg.launch.provenance import command_line, environment, git_state


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_of_a_clone(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # nothing committed yet
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "new.txt").write_text("untracked files are no change of the code")
    assert git_state(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == {"revision": revision, "dirty": True}
    (tmp_path / "package").mkdir()
    assert git_state(tmp_path / "package") is None


def test_the_environment_names_versions_and_machine() -> None:
    found = environment()
    assert set(found) == {"pfseg", "git", "python", "packages", "platform", "hostname", "cores", "gpus"}
    assert found["packages"]["numpy"].startswith("1.") and found["cores"] >= 1 and isinstance(found["gpus"], list)


def test_the_command_line_can_be_pasted(tmp_path: Path) -> None:
    line = command_line()
    assert line.startswith("cd ") and " && " in line and "pytest" in line
