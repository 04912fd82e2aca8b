"""The wheel: all that a checkout can do, installed where nobody may write, from a folder that holds nothing of pfseg.

The environment is a new one with the wheel alone; whatever needs pfseg's dependencies runs in the tests' own
interpreter, with that environment in front of its packages.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from privileges import obey_permissions
from runs import ENVIRONMENT, ROOT, TINY, rows

pytestmark = pytest.mark.slow

ONE_STEP = [*TINY, "trainer.max_steps=1"]
ONE_CPU = ["gpus=0", "ranks=1"]


class Installation(NamedTuple):
    """An environment that holds the wheel alone.

    Attributes:
        wheel: the file.
        script: the command `pfseg`.
        packages: folder of the installed packages.
    """

    wheel: Path
    script: Path
    packages: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("pfseg-*.whl")
    environment = folder / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    packages = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    made = [packages, *packages.rglob("*")]
    for path in made:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield Installation(wheel, environment / "bin" / "pfseg", packages)
    for path in made:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


class Place(NamedTuple):
    """A user's working folder, in which the installed command is run."""

    folder: Path
    installed: Installation

    def write(self, **files: str) -> None:
        """Write files, such as `conf__dataset__own__yaml`; `__` stands for `/` and, before the suffix, for a dot."""
        for name, text in files.items():
            *parents, stem, suffix = name.split("__")
            path = self.folder.joinpath(*parents, f"{stem}.{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python in this folder, with the installed packages."""
        environment = ENVIRONMENT | {"PYTHONPATH": str(self.installed.packages)}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            preexec_fn=obey_permissions,
            capture_output=True,
            text=True,
        )

    def pfseg(self, *arguments: str) -> str:
        """Run the command `pfseg` in this folder; returns what it printed."""
        done = self.run(self.installed.script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def error(self, *arguments: str) -> str:
        """Run the command `pfseg` in this folder, expecting one line of error; returns it."""
        done = self.run(self.installed.script, *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture
def place(installed: Installation, tmp_path: Path) -> Place:
    (folder := tmp_path / "work").mkdir()
    return Place(folder, installed)


OWN_DATA = {
    "conf__dataset__halves__yaml": """
        defaults: [synthetic, _self_]
        _target_: halves.Halves
        name: halves
        classes: [{name: dark, color: "3C3C3C"}, {name: bright, color: "B4B4B4"}]
        """,
    "halves__py": """
        import numpy as np
        from pfseg.data import base

        class Halves(base.SegmentationDataset):
            def __init__(self, split, classes):
                self.classes = base.parse_classes(classes)
                self.warnings = []

            def __len__(self):
                return 4

            def read(self, index):
                mask = np.zeros((64, 64), np.uint8)
                mask[:, 32:] = 1
                return base.Sample((60 + 120 * mask[..., None]).repeat(3, 2), mask, str(index))
        """,
}


def test_it_holds_all_that_runs_and_nothing_else(installed: Installation):
    names = zipfile.ZipFile(installed.wheel).namelist()
    below = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"pfseg/{name}" for name in below} <= set(names)
    kept = (path for path in (ROOT / "pfseg").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {str(path.relative_to(ROOT)) for path in kept} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pfseg", "hydra_plugins"}


def test_it_says_what_it_can_do(place: Place):
    told = place.pfseg("--help")
    assert "train" in told and "evaluate" in told and "predict" in told


def test_a_network_is_trained_scored_and_applied_from_an_empty_folder(place: Place):
    where = place.run("-c", "import pfseg; print(pfseg.__file__)").stdout
    assert where.startswith(str(place.installed.packages))
    place.pfseg("train", *ONE_STEP, "hydra.run.dir=run")
    assert [row["step"] for row in rows(place.folder / "run", "train")] == [1]
    assert "fwIoU" in place.pfseg("evaluate", "checkpoint=run", *ONE_CPU, "hydra.run.dir=scores")
    assert (place.folder / "scores" / "results.html").is_file()
    cv2.imwrite(str(place.folder / "image.png"), np.full((70, 80, 3), 99, np.uint8))
    place.pfseg("predict", "checkpoint=run", "input=image.png", "output=maps")
    assert cv2.imread(str(place.folder / "maps" / "image.png"), cv2.IMREAD_UNCHANGED).shape[:2] == (70, 80)
    assert {path.name for path in place.folder.iterdir()} == {"run", "scores", "maps", "image.png"}


def test_own_settings_and_modules_are_found_in_sweeps_too(place: Place):
    place.write(**OWN_DATA)
    overrides = [text for text in ONE_STEP if not text.startswith("dataset.")]
    place.pfseg(
        "train", "-m", *overrides, "dataset=halves", "dataset.crop_size=64", "seed=0,1", "hydra.sweep.dir=sweep"
    )
    for job in ("0", "1"):
        assert rows(place.folder / "sweep" / job, "start")[0]["classes"] == ["dark", "bright"]
        assert [row["step"] for row in rows(place.folder / "sweep" / job, "train")] == [1]


def test_own_networks_are_created_from_python(place: Place):
    place.write(conf__model__slim__yaml="defaults: [pfnet_r18, _self_]\nname: slim\nfpn_dim: 8\nmatch_dim: 4\n")
    code = 'import pfseg; print(pfseg.create_model("slim", num_classes=3).head.conv_last[1].weight.shape)'
    done = place.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[3,8,1,1,]"]


def test_a_command_without_its_settings_says_what_to_give(place: Place):
    assert "checkpoint is not set: add checkpoint=" in place.error("evaluate")
    assert "did you mean `optimizer.lr`?" in place.error("train", "optimizer.lrr=1")
    assert not list(place.folder.iterdir())


def test_a_folder_of_settings_with_an_unknown_group(place: Place):
    place.write(conf__datset__own__yaml="name: own\n")
    error = place.error("train", *ONE_STEP)
    assert f"{os.sep}conf{os.sep}datset" in error and "dataset" in error


def test_a_class_in_a_file_with_a_syntax_error(place: Place):
    place.write(**OWN_DATA)
    place.write(halves__py="import numpy\n\nclass Halves:\n    def read(self:\n        pass\n")
    error = place.error("train", *ONE_CPU, "logger=none", "dataset=halves")
    assert f"{place.folder}/halves.py:4 can't be read as Python" in error
