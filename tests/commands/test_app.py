"""The command `pfseg` itself: its commands, help, version and exit codes."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ENVIRONMENT, ROOT, TINY, command, start

import pfseg
from pfseg.commands.app import commands, main
from pfseg.config.commands import SCHEMAS
from pfseg.config.compose import config_dir
from pfseg.launch.lease import sole_use


def ended(*arguments: str) -> int:
    """Exit code of `pfseg <arguments>` in this process."""
    with pytest.raises(SystemExit) as end:
        main(argv=arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["bare", "long", "short"])
def test_the_help_names_each_command_and_what_it_does(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert ended(*arguments) == 0
    told = capsys.readouterr().out
    assert all(name in told and summary in told for name, summary in commands().items())


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_help_of_a_command_lists_its_groups_and_settings(name: str, capsys: pytest.CaptureFixture[str]):
    assert ended(name, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: pfseg {name} ") and told.endswith(f"explained: pfseg settings {name}\n")
    assert len(told.splitlines()) < 60 and "job=" not in told and "???" not in told
    assert ("  optimizer " in told and "adam, adamw, sgd" in told) == (name in ("train", "preview"))
    assert bool(re.search(r"\n  input=<must be given> +image, folder", told)) == (name == "predict")


def test_the_help_knows_files_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for place in ("conf", "more"):
        (tmp_path / place / "dataset").mkdir(parents=True)
        (tmp_path / place / "dataset" / f"{place}_town.yaml").write_text("defaults: [folder]")
    monkeypatch.chdir(tmp_path)
    assert ended("train", "--help", "--config-dir", "more") == 0
    assert "conf_town, dubai, folder," in (told := capsys.readouterr().out) and "more_town, potsdam" in told


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"pfseg {pfseg.__version__}\n"


@pytest.mark.parametrize("name", commands())
def test_each_command_has_a_module_and_settings_of_its_own(name: str):
    assert callable(importlib.import_module(f"pfseg.commands.{name}").run)
    if name != "settings":
        assert name in SCHEMAS and (config_dir() / f"{name}.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command `trian`: did you mean `pfseg train`? commands: train, evaluate, predict, "),
        (["xyz"], "unknown command `xyz`: commands: train, "),
        (["train", "--epochs", "3"], "settings are given as key=value, without dashes; --help lists them all"),
        (["convert", "a.pth", "b.pth"], "file takes one value, got 2: a.pth b.pth"),
        (["train", "--experimental-rerun", "gone.pickle"], "--experimental-rerun gone.pickle does not exist: "),
        (["train", "--config-dir", "gone"], "--config-dir gone is not a folder (looked in /"),
    ],
    ids=["near", "far", "dashes", "two files", "rerun", "folder"],
)
def test_what_cannot_be_understood_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert ended(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_ctrl_c_is_as_before_when_a_command_has_ended(capsys: pytest.CaptureFixture[str]):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit):
            main(argv=["--version"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("library", ["pydantic_core", "libopenblas"])
def test_ctrl_c_while_libraries_are_imported_ends_without_a_traceback(library: str, tmp_path: Path):
    process = start("train.py", *TINY, f"hydra.run.dir={tmp_path / 'run'}")
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None, f"it doesn't import {library}"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "") and process.returncode == 130
    assert not (tmp_path / "run").exists()


def test_sigterm_while_a_logger_starts_ends_the_command_in_order(tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import atexit, pathlib, time\n"
        "def start(run):\n"
        "    atexit.register(pathlib.Path('tidy').touch)\n"
        "    pathlib.Path('begun').touch()\n"
        "    time.sleep(60)\n"
    )
    arguments = [*TINY, "+logger.slow._target_=slow.start", "hydra.run.dir=run"]
    command = [sys.executable, "-m", "pfseg", "train", *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, b"") and (tmp_path / "tidy").exists()


def test_a_run_folder_in_use_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with sole_use(tmp_path):
        assert command("train", *TINY, f"hydra.run.dir={tmp_path}") == 1
    assert f"error: {tmp_path} is in use by another command: wait for its end, or" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_a_rank_of_mpirun_does_not_start_another_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert ended("train") == 2
    assert "started by mpirun, which pfseg does by itself: type `pfseg train ranks=4 ...`" in capsys.readouterr().err


def test_a_quoted_value_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert command("reproduce", "no run") == 2  # which becomes run='no run'
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert command("train", *TINY, "hydra.run.dir=/dev/null/run") == 1
    error = capsys.readouterr().err
    assert error == "error: /dev/null/run can't be written (Not a directory); check the folder and its permissions\n"


def test_an_error_that_cannot_be_kept_is_still_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "error.txt").mkdir()
    logger = "+logger.mine={_target_: fractions.Fraction, wrong: 1}"
    assert command("train", *TINY, logger, f"hydra.run.dir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: logger.mine: fractions.Fraction can't be built: ") and error.count("\n") == 1
