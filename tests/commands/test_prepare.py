"""The command in a process of its own: killed, stopped, misspelt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.fakes import write
from data.published import isaid, palette, pixels, prepared

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["dataset.prepare.size=96", "dataset.prepare.stride=32"]
SCENES = 12


def start(src: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pfseg", "prepare", "dataset=isaid", f"src={src}", f"out={out}", "workers=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *SIZES, *overrides], env=environment, cwd=out.parent, **pipes)


def many_scenes(src: Path) -> None:
    """A scene is some 200 patches, which takes long enough to be interrupted in."""
    isaid(src)
    image, mask = pixels(520, 520, 0), palette("isaid")[np.zeros((520, 520), np.uint8)]
    for number in range(SCENES):
        image[:8, :8] = number
        write(src / "train/images" / f"P1{number:03}.png", image)
        write(src / "train/images" / f"P1{number:03}_instance_color_RGB.png", mask)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "journal.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def wait_for_scenes(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    journal = out / "journal.jsonl"
    while not journal.is_file() or journal.read_text().count('{"done"') < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_killed_again_and_again_it_ends_as_if_undisturbed(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    many_scenes(src)
    for scenes in (2, 5):
        process = start(src, out)
        wait_for_scenes(out, scenes, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "index.json").exists()
    journal = (out / "journal.jsonl").read_text()
    finished = journal.count('{"done"')
    assert 5 <= finished < SCENES
    prepared("isaid", src, out, *SIZES)
    assert (out / "journal.jsonl").read_text().count('{"done"') == SCENES + 4  # none was done twice
    prepared("isaid", src, tmp_path / "undisturbed", *SIZES)
    assert tree(out) == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stopped_it_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int):
    src, out = tmp_path / "src", tmp_path / "out"
    many_scenes(src)
    process = start(src, out)
    wait_for_scenes(out, 1, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "scenes; the same command goes on from there" in errors
    assert len(errors.splitlines()) == 1
    assert not list(out.rglob("*.part"))
    assert cv2.imread(str(next(out.glob("train/images/*.png")))).shape == (96, 96, 3)


def test_faults_are_one_line(tmp_path: Path):
    out = tmp_path / "out"
    isaid(tmp_path / "src")
    processes = {
        "unknown key `verfy`: did you mean `verify`?": start(tmp_path / "src", out, "verfy=only"),
        "src=/nowhere does not exist": start(Path("/nowhere"), out),
        "unknown choice `dataset=isaidd`: did you mean `dataset=isaid`?": start(
            tmp_path / "src", out, "dataset=isaidd"
        ),
    }
    for text, process in processes.items():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert errors.startswith(f"error: {text}")
        assert len(errors.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_a_scene_that_fails_ends_with_exit_code_1(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    (src / "val/images/P0003.png").write_bytes(b"")
    process = start(src, out)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: 1 of 4 scenes failed and the archive has 0 faults, listed in ")
    assert "train: pfseg train dataset=isaid dataset.root=" in shown
    assert (out / "report.md").is_file()
