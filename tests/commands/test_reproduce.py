from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml

from pfseg.commands.reproduce import compare, compare_data, pinned_overrides, read_stored
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.errors import ConfigError
from pfseg.launch.provenance import data_state, environment

OVERRIDES = ["gpus=0", "logger=none", "optimizer.lr=0.002", "augment.hflip=0.25"]


def store(folder: Path, *overrides: str, **changes: Any) -> Path:
    """What a start leaves; `changes` are made to the environment."""
    config = check(compose("train", [*OVERRIDES, *overrides])).dump()
    sources = [{"provider": "main", "path": "conf"}]
    hydra = {"hydra": {"job": {"config_name": "train"}, "runtime": {"config_sources": sources}}}
    (folder / ".hydra").mkdir(parents=True)
    dump(folder / "resolved.yaml", config)
    dump(folder / ".hydra" / "hydra.yaml", hydra)
    dump(folder / ".hydra" / "overrides.yaml", [*OVERRIDES, *overrides])
    (folder / "command.txt").write_text("cd /somewhere && python train.py first\ncd /somewhere && python resume\n")
    origin = environment() | {"data": data_state(config["dataset"]["root"])} | changes
    (folder / "environment.json").write_text(json.dumps(origin))
    return folder


def dump(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def change(folder: Path, group: str, **values: Any) -> None:
    """Change the stored configuration, as if conf/ had been another one."""
    config = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    config[group] |= values
    dump(folder / "resolved.yaml", config)


def images(folder: Path) -> Path:
    for name in ("train/images", "train/masks", "val/images", "val/masks"):
        (folder / name).mkdir(parents=True)
    return folder


def levels(findings: list[Any]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def test_the_overrides_are_repeated_without_those_of_the_folder(tmp_path: Path):
    folder = store(tmp_path / "run")
    dump(folder / ".hydra" / "overrides.yaml", [*OVERRIDES, "resume='/x'", "hydra.run.dir=/y"])
    stored = read_stored(folder)
    assert pinned_overrides(stored) == (OVERRIDES, [])
    assert stored.command == "cd /somewhere && python train.py first"


def test_changed_defaults_are_pinned_to_the_stored_values(tmp_path: Path):
    folder = store(tmp_path / "run")
    change(folder, "optimizer", weight_decay=0.25, betas=[0.5, 0.75])
    change(folder, "trainer", ema=0.5, max_steps=7)
    classes = [{"name": f"Straße, {i}'s", "color": [i, 0, 255]} for i in range(6)]
    change(folder, "dataset", classes=classes)
    overrides, lost = pinned_overrides(read_stored(folder))
    assert not lost and {"optimizer.weight_decay=0.25", "trainer.ema=0.5"} <= set(overrides)
    again = check(compose("train", overrides)).dump()
    assert again == yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))


def test_settings_that_came_or_went_are_told(tmp_path: Path):
    folder = store(tmp_path / "run")
    change(folder, "loss", old_key=3)
    config = yaml.safe_load((folder / "resolved.yaml").read_text())
    del config["trainer"]["ema"]
    dump(folder / "resolved.yaml", config)
    found = levels(pinned_overrides(read_stored(folder))[1])
    assert found == {"setting loss.old_key": "major", "setting trainer.ema": "minor"}
    dump(folder / ".hydra" / "overrides.yaml", ["gone=1"])
    _, (finding,) = pinned_overrides(read_stored(folder))
    assert finding.level == "major" and "unknown key `gone`" in finding.now


def test_relative_paths_become_those_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images(tmp_path / "my data=1")
    monkeypatch.chdir(tmp_path)
    own = ["dataset=folder", "dataset.classes=[{name: a, color: '000000'}]", "dataset.root='my data=1'"]
    folder = store(tmp_path / "run", *own)
    monkeypatch.chdir("/")
    overrides, lost = pinned_overrides(read_stored(folder))
    assert not lost and check(compose("train", overrides)).dump()["dataset"]["root"] == str(tmp_path / "my data=1")


def test_code_is_a_major_difference_versions_and_machines_are_minor():
    now = environment() | {"git": {"revision": "a" * 40, "dirty": False}}
    assert set(levels(compare(now, now)).values()) == {"same"}
    assert levels(compare(now | {"git": {"revision": "b" * 40, "dirty": False}}, now))["code"] == "major"
    assert levels(compare(now | {"git": None}, now))["code"] == "major"
    assert levels(compare(now | {"git": None}, now | {"git": None}))["code"] == "same"
    assert levels(compare(now | {"git": None, "pfseg": "0.0.1"}, now | {"git": None}))["code"] == "major"
    assert levels(compare(now | {"git": {"revision": "a" * 40, "dirty": True}}, now))["code"] == "minor"
    other = now | {"python": "3.10.0", "gpus": ["H200"], "packages": {**now["packages"], "numpy": "1.0", "lost": "1"}}
    found = levels(compare(other, now))
    assert [found[key] for key in ("python", "GPUs", "numpy", "lost", "jittor")] == ["minor"] * 4 + ["same"]


def test_data_are_compared_by_their_index(tmp_path: Path):
    root = images(tmp_path / "data")
    own = ["dataset=folder", "dataset.classes=[{name: a, color: '000000'}]", f"dataset.root={root}"]
    plain = read_stored(store(tmp_path / "plain", *own))
    assert levels(compare_data(plain)) == {"data": "same"}
    (root / "index.json").write_text("{}")
    assert levels(compare_data(plain)) == {"data index": "minor"}
    indexed = read_stored(store(tmp_path / "indexed", *own))
    assert levels(compare_data(indexed)) == {"data index": "same"}
    (root / "index.json").write_text('{"patches": []}')
    assert levels(compare_data(indexed)) == {"data index": "major"}
    root.rename(tmp_path / "moved")
    assert levels(compare_data(indexed)) == {"data": "major"}
    assert compare_data(read_stored(store(tmp_path / "builtin"))) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.json", None, "lacks environment.json"),
        ("resolved.yaml", "{a: [", "can't be read"),
        ("resolved.yaml", "3", "damaged"),
        (".hydra/hydra.yaml", "{}", "hydra.yaml is damaged"),
        (".hydra/overrides.yaml", "[1]", r"overrides.yaml is damaged \(0: Input should be a valid string\)"),
        ("environment.json", '{"packages": {"numpy": 1}}', r"environment.json is damaged \(packages.numpy: Input"),
    ],
)
def test_damaged_folders_are_rejected(tmp_path: Path, name: str, content: str | None, message: str):
    folder = store(tmp_path / "run")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_stored(folder)


def test_the_command_prints_and_does_not_start_after_a_major_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert runs.command("reproduce", str(tmp_path / "none")) == 2
    assert "does not exist" in capsys.readouterr().err
    folder = store(tmp_path / "ein Lauf", git={"revision": "b" * 40, "dirty": False})
    assert runs.command("reproduce", str(folder)) == 0
    out = capsys.readouterr().out
    assert "bbbbbbbbbbbb" in out and "major difference" in out
    words = shlex.split(out.splitlines()[-1])
    assert words[1:4] == ["-m", "pfseg", "train"] and words[4:8] == OVERRIDES
    assert words[-1].startswith(f"hydra.run.dir='{folder}-again-")
    assert runs.command("reproduce", str(folder), "start=true") == 2
    assert f"git checkout {'b' * 40}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ein Lauf"]


@pytest.mark.slow
def test_run_starts_it_in_a_new_folder_and_gives_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = store(tmp_path / "run")
    dump(folder / ".hydra" / "overrides.yaml", [*OVERRIDES, "optimizer.lrr=1"])  # which pfseg train rejects
    assert runs.command("reproduce", str(folder), "start=true", "force=true") == 2
    assert "did you mean `optimizer.lr`" in capfd.readouterr().err


@pytest.mark.slow
def test_a_reproduced_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in `runs.train`: another number rounds sums otherwise
    runs.train(tmp_path / "run")
    assert runs.command("reproduce", str(tmp_path / "run"), "start=true") == 0
    (again,) = tmp_path.glob("run-again-*")

    def losses(folder: Path) -> list[float]:
        return [row["train/loss"] for row in runs.rows(folder, "train")]

    assert losses(again) == losses(tmp_path / "run") != []
