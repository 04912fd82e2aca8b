"""The tutorials of the documentation work as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def follow(page: Path, folder: Path, commands: list[str] | None = None) -> str:
    """Write the titled files of a page and run its shell commands in order, or `commands`; returns what they print."""
    programs = folder / ".bin"  # `pfseg` and `python` of this environment and working copy, whatever else is installed
    programs.mkdir()
    for name, arguments in (("pfseg", '-m pfseg "$@"'), ("python", '"$@"')):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    output = ""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if commands is not None:
        blocks = [*(block for block in blocks if block[1]), *(("sh", "", command) for command in commands)]
    for language, title, text in blocks:
        if title:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif language == "sh":
            done = subprocess.run(["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            output += done.stdout
    return output


@pytest.mark.slow
def test_own_images(tmp_path: Path):
    output = follow(ROOT / "docs" / "tutorials" / "own-images.md", tmp_path)
    assert (tmp_path / "samples.png").is_file()
    assert len(list((tmp_path / "maps").glob("*_overlay.png"))) == 24
    share = re.search(r"(\d+)% of the image are trees", output)
    assert share and 0 < int(share[1]) < 100


@pytest.mark.slow
def test_own_loss(tmp_path: Path):
    follow(ROOT / "docs" / "tutorials" / "own-loss.md", tmp_path)
    assert "gamma: 1.5" in (tmp_path / "outputs" / "focal" / "resolved.yaml").read_text()
    assert '"train/seg"' in (tmp_path / "outputs" / "focal" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_examples_of_contributing(tmp_path: Path):
    """The data set, backbone, network and logger of CONTRIBUTING.md together."""
    command = (
        "pfseg train dataset=checkerboard model=plain model/backbone=thin loss=ce logger=scores dataset.crop_size=64 "
        "gpus=0 trainer.max_steps=2 trainer.bn_batches=0 hydra.run.dir=run"
    )
    follow(ROOT / "CONTRIBUTING.md", tmp_path, commands=[command])
    assert re.fullmatch(r"2 \d+\.\d\d\n", (tmp_path / "run" / "scores.txt").read_text())


def test_each_tutorial_is_followed():
    followed = set(re.findall(r'"([a-z-]+\.md)"', Path(__file__).read_text(encoding="utf-8")))
    assert {page.name for page in TUTORIALS} == followed
