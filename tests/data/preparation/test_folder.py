"""The folder of patches: whose files are in it, and how an interrupted preparation continues."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from data.fakes import write
from data.published import (
    SCENES,
    SIZES,
    index_of,
    isaid,
    opened,
    pixels,
    prepared,
    refused,
    tree,
)

from pfseg.data.preparation.folder import PatchFolder
from pfseg.data.preparation.layout import Layout

# Continuing


def test_a_second_start_has_nothing_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    before, times = tree(out), {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.png")}
    prepared("isaid", src, out, *SIZES)
    assert "4 scenes had been finished before" in capsys.readouterr().out
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.png")} == times


def test_changed_scenes_and_damaged_patches_are_done_again(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    smaller = cv2.imread(str(src / "train/images/P0000.png"))[:40]
    write(src / "train/images/P0000.png", smaller[..., ::-1])
    mask = cv2.imread(str(src / "train/images/P0000_instance_color_RGB.png"))[:40]
    write(src / "train/images/P0000_instance_color_RGB.png", mask[..., ::-1])
    damaged = out / "val/images/P0003_0_32_0_32.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])
    prepared("isaid", src, out, *SIZES)
    assert damaged.read_bytes() == whole
    prepared("isaid", src, tmp_path / "fresh", *SIZES)
    assert {name: data for name, data in tree(out).items() if name != "report.md"} == {
        name: data for name, data in tree(tmp_path / "fresh").items() if name != "report.md"
    }


def test_torn_journal_line_is_left_out(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    before = tree(out)
    journal = (out / "journal.jsonl").read_bytes()
    (out / "journal.jsonl").write_bytes(journal[:-20])
    prepared("isaid", src, out, *SIZES)
    assert tree(out) == before


def test_patches_of_an_unfinished_scene_are_written_again(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    before = tree(out)
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (out / "journal.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    (out / "test/images/P0006_0_32_0_32.png").write_bytes(b"half")
    (out / "test/images/P0006_0_64_0_64.png").write_bytes(b"of a scene that has changed since")
    (out / "test/images/.P0006_20_52_0_32.png.4711.part").write_bytes(b"half")
    prepared("isaid", src, out, *SIZES)
    assert tree(out) == before


def test_journal_of_version_0_1(tmp_path: Path):
    """It names the files of each scene before they are written."""
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    before = tree(out)
    settings, *scenes = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    lines = [{"settings": settings["settings"]}]
    for line in scenes:
        split = line["done"].partition("/")[0]
        names = [row["name"] for row in line["record"]["patches"]]
        files = [f"{split}/images/{name}" for name in names]
        files += [f"{split}/masks/{name[:-4]}_instance_color_RGB.png" for name in names if split != "test"]
        lines += [{"begin": line["done"], "files": [*files, f"{split}/images/gone.png"]}, line]
    lines[2:2] = [{"drop": "train/P0000"}, lines[1]]
    lines.pop()  # the last scene was not finished
    (out / "test/images/gone.png").write_bytes(b"of this scene")
    (out / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    prepared("isaid", src, out, *SIZES)
    assert tree(out) == before
    journal = (out / "journal.jsonl").read_text()
    assert journal.count('"done"') == 4
    (out / "journal.jsonl").write_text(journal.replace('"record"', '"recrd"'))
    assert "journal.jsonl is damaged in line 5" in refused("isaid", src, out, *SIZES)


def test_lost_scenes_are_not_dropped_in_silence(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    (src / "test/images/P0006.png").unlink()
    text = refused("isaid", src, out, *SIZES)
    assert "holds patches of scenes that src no longer gives: test/P0006; bring them back" in text


# The destination


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    write(out / "thesis.png", pixels(4, 4, 0))
    text = refused("isaid", src, out, *SIZES)
    assert "holds something else: thesis.png; give a new folder, or overwrite=true" in text
    assert [path.name for path in out.iterdir()] == ["thesis.png"]
    data = prepared("isaid", src, out, *SIZES, "overwrite=true")
    assert len(opened(data, "train")) > 0
    assert (out / "thesis.png").is_file()


def test_foreign_files_among_the_patches_are_refused(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    write(out / "train/images/mine.png", pixels(4, 4, 0))
    text = refused("isaid", src, out, *SIZES, "overwrite=true")
    assert "files among the patches that no preparation wrote, which training would read: train/images/mine.png" in text
    assert [path.name for path in out.iterdir()] == ["train"]


def test_other_settings_need_overwrite_which_removes_only_its_own(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    (out / "notes.txt").write_text("mine")
    text = refused("isaid", src, out, "dataset.prepare.size=64", "dataset.prepare.stride=64")
    assert "prepared with other settings (size was [32, 32], is [64, 64]; stride was [20, 20], is [64, 64])" in text
    prepared("isaid", src, out, "dataset.prepare.size=64", "dataset.prepare.stride=64", "overwrite=true")
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    prepared("isaid", src, tmp_path / "fresh", "dataset.prepare.size=64", "dataset.prepare.stride=64")
    assert tree(out) == tree(tmp_path / "fresh")


def test_two_runs_on_one_folder(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    settings = json.loads((out / "journal.jsonl").read_text().splitlines()[0])["settings"]
    layout = Layout(**index_of(out)["layout"])
    with PatchFolder(out, layout, settings, SCENES, overwrite=False):
        assert f"another preparation is writing into out={out}" in refused("isaid", src, out, *SIZES)
    prepared("isaid", src, out, *SIZES)


@pytest.mark.parametrize("inside", [".", "patches", ".."])
def test_source_and_destination_in_each_other(tmp_path: Path, inside: str):
    src = tmp_path / "archive"
    isaid(src)
    before = tree(tmp_path)
    assert "contains the other: give a folder beside src" in refused("isaid", src, src / inside, *SIZES)
    assert tree(tmp_path) == before


def test_the_source_is_never_changed(tmp_path: Path):
    src = tmp_path / "src"
    isaid(src)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in src.rglob("*")}
    prepared("isaid", src, tmp_path / "out", *SIZES)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in src.rglob("*")} == before
