from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.fakes import write
from runs import ENVIRONMENT, ROOT

from pfseg.commands.preview import run as preview
from pfseg.config.check import check, checked
from pfseg.config.commands import Preview
from pfseg.config.compose import compose
from pfseg.errors import ConfigError, WriteError

SMALL = ["dataset.size=64", "dataset.train_images=6", "dataset.crop_size=64", "samples=8"]


def configured(out: Path, *overrides: str) -> Preview:
    return checked(compose("preview", [f"out='{out}'", *SMALL, *overrides]), Preview)


def test_a_picture_and_the_shares_of_the_classes(tmp_path, capsys):
    out = tmp_path / "a b.png"
    preview(configured(out, "rows=3", "augment=strong"))
    picture = cv2.imread(str(out))
    shown = capsys.readouterr().out
    assert picture.shape[0] > 3 * 128
    assert "8 training samples, drawn from 6" in shown
    for name in ("field", "building", "car"):
        assert name in shown
    assert "3 of them" in shown
    assert list(tmp_path.iterdir()) == [out]


def test_rare_classes_come_up_more_often_when_drawn_by_class(tmp_path, monkeypatch, capsys):
    """A class that covers a corner of one image in ten is in half of the samples."""
    monkeypatch.setenv("PFSEG_CACHE", str(tmp_path / "cache"))
    for number in range(10):
        mask = np.zeros((128, 128), np.uint8)
        if number == 4:
            mask[100:, 100:] = 1
        write(tmp_path / "train" / "images" / f"{number}.png", np.zeros((128, 128, 3), np.uint8))
        write(tmp_path / "train" / "masks" / f"{number}.png", mask)
    table = "dataset.classes=[{name: common, color: '000000'}, {name: rare, color: 'FFFFFF'}]"
    shares = []
    for share in (0.0, 1.0):
        given = ["dataset=folder", f"dataset.root={tmp_path}", table, f"dataset.class_uniform={share}"]
        given += ["dataset.crop_size=64", "dataset.scale_range=[1.0,1.0]", "samples=60", f"out={tmp_path / 'p.png'}"]
        preview(checked(compose("preview", given), Preview))
        line = next(line for line in capsys.readouterr().out.splitlines() if "rare" in line)
        shares.append(int(line.split()[-1]))
    assert shares[0] < 25
    assert shares[1] == pytest.approx(50, abs=5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["out=a.jpg"], r"out=a.jpg must end in .png: set out=<name>.png"),
        (["rows=0"], "rows=0"),
        (["dataset=folder", "dataset.root=nowhere", "dataset.classes=[{name: a, color: '000000'}]"], "nowhere"),
        (["dataset.crop_size=16"], "dataset.crop_size=16 is too small"),
    ],
)
def test_faulty_settings(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(compose("preview", overrides))


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"p.png"):
        preview(configured(tmp_path / "file" / "p.png", "rows=1", "samples=1"))


@pytest.mark.slow
def test_the_command(tmp_path):
    """Without Jittor, with a recipe that asks for eight GPUs; faults in one line."""

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "importtime", "-m", "pfseg", "preview", *overrides]
        return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)

    done = run("experiment=isaid_r101", "dataset=synthetic", *SMALL, "rows=1", f"out={tmp_path / 'p.png'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "p.png").is_file()
    assert " jittor" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "p.png"]
    wrong = run("dataset.crop_siz=3")
    assert wrong.returncode == 2
    assert "error: unknown key `dataset.crop_siz`: did you mean `dataset.crop_size`?" in wrong.stderr
