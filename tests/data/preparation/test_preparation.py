"""Archives and folders to patches that the data set reads back with the same settings; and what goes wrong."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.fakes import COLORS, write
from data.published import SHARED, configured, isaid, labels, opened, pixels, prepared

from pfseg.commands.prepare import run
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.config.schema import FolderData
from pfseg.data.preparation.folder import PatchFolder
from pfseg.data.preparation.layout import Layout
from pfseg.errors import ConfigError, DataError, WriteError

TABLE = ["dataset.classes=[{name: roof, color: '3C1098'}, {name: road, color: [110, 193, 228]}]"]
SCENES = ("train/P0000", "train/P0002", "val/P0003", "test/P0006")  # of `isaid`
SIZES = ["dataset.prepare.size=32", "dataset.prepare.stride=20"]


def pairs(data: FolderData, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Samples of a split in the order of their patches' names; those are the scenes' names here."""
    dataset = opened(data, split)
    samples = [dataset.read(index) for index in range(len(dataset))]
    return [(sample.image, sample.mask) for sample in samples]


def check_same(data: FolderData, src: Path, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Whole scenes are read from the patches just as they are from the source."""
    for split in splits:
        ours, theirs = pairs(data, split), pairs(data.model_copy(update={"root": str(src)}), split)
        assert len(ours) == len(theirs) > 0
        for (image, mask), (scene, truth) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(image, scene)
            np.testing.assert_array_equal(mask, truth)


def index_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "index.json").read_text(encoding="utf-8"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "journal.jsonl"
    }


def refused(dataset: str, src: Path, out: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError, WriteError)) as caught:
        prepared(dataset, src, out, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Archives without code of their own


@pytest.mark.parametrize(("dataset", "suffix"), [("gaofen_img", ".tif"), ("gaofen_sar", ".png")])
def test_gaofen(tmp_path: Path, dataset: str, suffix: str):
    src = tmp_path / "gaofen"
    for seed, name in enumerate(["train/1", "train/2", "val/3", "all/1", "all/2", "all/3"]):
        split, stem = name.split("/")
        image = pixels(50, 40 + seed, seed, channels=3 if seed % 2 else 1)
        write(src / split / "image" / f"{stem}{suffix}", image.astype(np.uint16) * 256 if seed == 2 else image)
        write(src / split / "gt" / f"{stem}.png", labels(50, 40 + seed, seed, 2) * 255)
    data = prepared(dataset, src, tmp_path / "out")
    check_same(data, src)
    first = cv2.imread(str(tmp_path / "out/train/gt/1_0_50_0_40.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(first)) == {0, 255}
    text = refused(dataset, src, tmp_path / "cut", "dataset.prepare.size=48")
    assert "3 of 3 scenes failed" in text
    assert "255 is a class here and no other value means that; add one to `ignore`" in text
    data = prepared(dataset, src, tmp_path / "cut", "dataset.prepare.size=48", "dataset.ignore=[7]", "overwrite=true")
    assert (pairs(data, "train")[0][1][:, 40:] == 255).all()


def test_loveda(tmp_path: Path):
    src = tmp_path / "LoveDA"
    for seed, part in enumerate(["Train/Urban", "Train/Rural", "Val/Urban"]):
        write(src / part / "images_png" / "1366.png", pixels(40, 40, seed))
        write(src / part / "masks_png" / "1366.png", labels(40, 40, seed, 8))
    data = prepared("loveda", src, tmp_path / "out", "dataset.prepare.size=40")
    check_same(data, src)
    assert sorted(path.name for path in (tmp_path / "out/Train/images_png").iterdir()) == [
        "Rural_1366_0_40_0_40.png",
        "Urban_1366_0_40_0_40.png",
    ]


def test_lists_of_paths_with_spaces(tmp_path: Path):
    src, out = tmp_path / "städte 2", tmp_path / "pätches 1"
    for tile in (1, 2):
        for part in (1, 2):
            write(src / f"Tile {tile}/images/image_part_00{part}.jpg", cv2.resize(pixels(4, 4, tile), (44, 40)))
            write(src / f"Tile {tile}/masks/image_part_00{part}.png", COLORS[labels(40, 44, tile + part, 2)])
    (src / "split_train.txt").write_text("Tile 1/images/image_part_001.jpg\nTile 2/images/image_part_001.jpg\n")
    (src / "split_val.txt").write_text("Tile 2/images/image_part_002.jpg\n")
    data = prepared("dubai", src, out, "dataset.classes=[{name: a, color: '3C1098'}, {name: b, color: '6EC1E4'}]")
    check_same(data, src)
    assert (out / "split_train.txt").read_text().splitlines() == [
        "train/images/Tile 1_image_part_001_0_40_0_44.png",
        "train/images/Tile 2_image_part_001_0_40_0_44.png",
    ]


@pytest.mark.shared_data("dubai")
def test_dubai(tmp_path: Path):
    lists = {
        split: (SHARED / "dubai" / f"split_{split}.txt").read_text().splitlines()[:3] for split in ("train", "val")
    }
    for path in (SHARED / "dubai").iterdir():
        if path.is_dir():
            (tmp_path / "src").mkdir(exist_ok=True)
            (tmp_path / "src" / path.name).symlink_to(path)
    for split, lines in lists.items():
        (tmp_path / "src" / f"split_{split}.txt").write_text("\n".join(lines))
    data = prepared("dubai", tmp_path / "src", tmp_path / "out")
    check_same(data, tmp_path / "src")


def test_a_share_gets_folders_of_its_own(town: Path, capsys: pytest.CaptureFixture[str]):
    out = town.parent / "out"
    data = prepared("folder", town, out, *TABLE, "dataset.splits={val: 0.25, seed: 0}", "dataset.bands=[2,1,0]")
    assert "dataset.splits=null dataset.bands=null" in capsys.readouterr().out
    assert [len(opened(data.model_copy(update={"splits": None}), split)) for split in ("train", "val")] == [6, 2]
    names = {path.name for path in (out / "train/images").iterdir()} | {p.name for p in (out / "val/images").iterdir()}
    assert len(names) == 8
    assert "train_tile 0_0_40_0_48.png" in names


def test_links_are_followed(town: Path):
    src = town.parent / "links"
    src.mkdir()
    for split in ("train", "val"):
        (src / split).symlink_to(town / split)
    (town / "train" / "loop").symlink_to(town)
    data = prepared("folder", src, town.parent / "out", *TABLE)
    check_same(data, src)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_large_files_are_decoded_from_disk(town: Path, monkeypatch: pytest.MonkeyPatch, suffix: str):
    for path in list(town.glob("*/images/*.jpg")):
        write(path.with_suffix(suffix), cv2.imread(str(path))[..., ::-1])
        if suffix != ".jpg":
            path.unlink()
    data = prepared("folder", town, town.parent / "out", *TABLE)
    monkeypatch.setattr("pfseg.data.decode._LARGE", 0)
    monkeypatch.setattr("pfseg.data.preparation.cutting._SMALL", 0)
    prepared("folder", town, town.parent / "from disk", *TABLE)
    assert tree(town.parent / "from disk") == tree(town.parent / "out")
    check_same(data, town)
    broken = next(town.glob(f"train/images/*{suffix}"))
    broken.write_bytes(broken.read_bytes()[:-40])
    text = refused("folder", town, town.parent / "out", *TABLE)
    assert "1 of 8 scenes failed" in text


# What is written


def test_index_and_report(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src, size=(50, 32))
    stray = cv2.imread(str(src / "train/images/P0002_instance_color_RGB.png"))
    stray[0, :5] = (1, 2, 3)
    write(src / "train/images/P0002_instance_color_RGB.png", stray[..., ::-1])
    prepared("isaid", src, out, *SIZES)
    index = index_of(out)
    assert (index["dataset"], index["size"], index["stride"]) == ("isaid", [32, 32], [20, 20])
    assert index["classes"][1] == {"name": "ship", "color": [0, 0, 63], "id": 1}
    assert {split: part["scenes"] for split, part in index["splits"].items()} == {"train": 2, "val": 1, "test": 1}
    first, second = index["splits"]["train"]["patches"][:2]
    assert (first["name"], first["scene"], first["size"]) == ("P0000_0_32_0_32.png", "P0000", [50, 32])
    assert (first["window"], first["border"]) == ([0, 32, 0, 32], ["top", "left", "right"])
    assert (second["window"], second["border"]) == ([18, 50, 0, 32], ["bottom", "left", "right"])
    counts = np.bincount(labels(50, 32, 0, 16)[:32].ravel(), minlength=16)
    assert list(first["pixels"].values()) == counts.tolist()
    assert first["ignored"] == 0
    assert "pixels" not in index["splits"]["test"]["patches"][0]
    report = (out / "report.md").read_text()
    assert "P0002_instance_color_RGB.png: 5 px of 1 colours (030201)" in report
    assert "| train | 2 | 4 |" in report
    assert "test/P0006" in report
    assert "33,978" not in report  # these are not the published windows


def test_published_counts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    isaid(tmp_path / "src", size=(897, 20))
    prepared("isaid", tmp_path / "src", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "train: got 4 patches, a complete archive gives 33,978" in shown
    assert "train: 2 scenes; the complete archive has 1,409 without P1527, P1530" in shown


@pytest.mark.parametrize("compression", [0, 3])
def test_every_compression_holds_the_same(town: Path, compression: int):
    out = town.parent / "out"
    data = prepared("folder", town, out, *TABLE, f"compression={compression}")
    check_same(data, town)


# Going on


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


# Faulty input


def test_bad_files_among_good_ones_are_named_and_the_rest_is_done(town: Path):
    out = town.parent / "out"
    files = town / "train"
    (files / "images/tile 0.jpg").write_bytes(b"")
    data = (files / "images/tile 1.jpg").read_bytes()
    (files / "images/tile 1.jpg").write_bytes(data[: len(data) // 2])
    (files / "masks/tile 2.png").write_bytes(b"no image at all")
    write(files / "masks/tile 3.png", COLORS[np.zeros((39, 48), np.uint8)])
    (files / "masks/tile 4.png").unlink()
    (town / "val/images/tile 1.jpg").unlink()
    text = refused("folder", town, out, *TABLE)
    assert text.startswith("4 of 6 scenes failed and the archive has 2 faults, listed in ")
    report = (out / "report.md").read_text()
    for part in (
        "train/tile 0: ",
        "tile 0.jpg is empty (0 bytes)",
        "tile 1.jpg is truncated",
        "tile 2.png cannot be decoded",
        "tile 3.jpg has 48x40 px but its mask",
        "tile 4.jpg has no mask: expected",
        "tile 1.png has no image: expected",
    ):
        assert part in report
    index = index_of(out)
    assert [row["scene"] for row in index["splits"]["train"]["patches"]] == ["tile 5"]
    assert [path.name for path in (out / "train/images").iterdir()] == ["tile 5_0_40_0_48.png"]


def test_mended_files_are_done_by_the_same_command(town: Path):
    out = town.parent / "out"
    image = town / "train/images/tile 0.jpg"
    good = image.read_bytes()
    image.write_bytes(good[:100])
    refused("folder", town, out, *TABLE)
    image.write_bytes(good)
    data = prepared("folder", town, out, *TABLE)
    check_same(data, town)


def test_patches_of_one_name(town: Path):
    for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
        other = town / "train" / "a" / kind
        other.mkdir(parents=True)
        shutil.copyfile(town / f"train/{kind}/tile 0{suffix}", other / f"b{suffix}")
        shutil.copyfile(town / f"train/{kind}/tile 0{suffix}", town / f"train/{kind}/a_b{suffix}")
    text = refused("folder", town, town.parent / "out", *TABLE)
    assert "would give patches of the same names as" in text


def test_wrong_source(tmp_path: Path, town: Path):
    (tmp_path / "empty").mkdir()
    text = refused("folder", tmp_path / "empty", tmp_path / "out", *TABLE)
    assert "looked for {train, val} with folders images" in text
    assert "found nothing; set src=" in text
    text = refused("folder", tmp_path / "städte 2" / "train", tmp_path / "out", *TABLE)
    assert "found images/, masks/;" in text
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_what_was_written(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src, size=(20, 20))
    write(src / "train/images/P0002.png", pixels(200, 200, 9))
    write(src / "train/images/P0002_instance_color_RGB.png", np.zeros((200, 200, 3), np.uint8))
    sizes = ["dataset.prepare.size=200", "dataset.prepare.stride=200"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        text = refused("isaid", src, out, *sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {out}/train/images/P0002_0_200_0_200.png: File too large; what was written is kept" in text
    assert (out / "train/images/P0000_0_20_0_20.png").is_file()
    assert not list(out.rglob("*.part"))
    data = prepared("isaid", src, out, *sizes)
    assert len(opened(data, "train")) == 2


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
    with PatchFolder(out, layout, settings, SCENES):
        assert f"another preparation is writing into out={out}" in refused("isaid", src, out, *SIZES)
    prepared("isaid", src, out, *SIZES)


@pytest.mark.parametrize("inside", [".", "patches", ".."])
def test_source_and_destination_in_each_other(tmp_path: Path, inside: str):
    src = tmp_path / "archive"
    isaid(src)
    before = tree(tmp_path)
    assert "lie in each other" in refused("isaid", src, src / inside, *SIZES)
    assert tree(tmp_path) == before


def test_the_source_is_never_changed(tmp_path: Path):
    src = tmp_path / "src"
    isaid(src)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in src.rglob("*")}
    prepared("isaid", src, tmp_path / "out", *SIZES)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in src.rglob("*")} == before


# Verification


def test_verification_finds_every_kind_of_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    only = check(compose("prepare", ["dataset=isaid", f"out={out}", "verify=only"]))  # needs no archive
    run(only)
    assert "patches in" in capsys.readouterr().out
    images, masks = out / "train/images", out / "train/masks"
    (images / "P0000_0_32_0_32.png").unlink()
    damaged = images / "P0000_20_52_0_32.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    write(images / "P0000_38_70_0_32.png", pixels(30, 32, 0))
    end = "instance_color_RGB.png"
    changed = cv2.imread(str(masks / f"P0002_0_32_0_32_{end}"), cv2.IMREAD_UNCHANGED)
    changed[0, 0] = (changed[0, 0] + 1) % 16
    write(masks / f"P0002_0_32_0_32_{end}", changed)
    write(masks / f"P0002_20_52_0_32_{end}", np.full((32, 32), 77, np.uint8))
    (masks / f"P0002_38_70_0_32_{end}").unlink()
    write(images / "foreign.png", pixels(4, 4, 0))
    before = tree(out)
    with pytest.raises(DataError, match=r"has 7 faults, .* patches are as they were written; the first: "):
        run(only)
    shown = capsys.readouterr().out
    for part in (
        "P0000_0_32_0_32.png cannot be read: No such file",
        "P0000_20_52_0_32.png is truncated",
        "train/images/P0000_38_70_0_32.png has 32x30 px, expected 32x32",
        f"train/masks/P0002_0_32_0_32_{end} has ",
        f"train/masks/P0002_20_52_0_32_{end} has the value 77 (values outside the class table: 100 % of its pixels)",
        f"train/masks/P0002_38_70_0_32_{end} cannot be read: No such file",
        "train/images/foreign.png is not in the index",
    ):
        assert part in shown
    assert tree(out) == before  # nothing is written


def test_verification_of_an_unfinished_folder(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"index.json cannot be read \(No such file.*\): .* is no finished preparation"):
        run(check(compose("prepare", ["dataset=isaid", f"out={out}", "verify=only"])))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: "text",
        lambda index: index.pop("layout") and index,
        lambda index: index | {"layout": {"images": "images"}},
        lambda index: index | {"layout": index["layout"] | {"folders": ["train"]}},
        lambda index: index | {"splits": [1]},
        lambda index: index | {"splits": {"train": {"patches": [{"name": "a.png"}]}}},
        lambda index: index | {"splits": {"train": {"patches": [{"name": "a.png", "scene": "a", "window": [1]}]}}},
        lambda index: index | {"size": 32},
        lambda index: index | {"classes": [{"name": "a"}]},
        lambda index: index | {"ignore_value": "none"},
    ],
)
def test_verification_by_a_damaged_index(tmp_path: Path, change: Callable[[dict[str, Any]], Any]):
    isaid(tmp_path / "src")
    prepared("isaid", tmp_path / "src", tmp_path / "out", *SIZES)
    index = change(index_of(tmp_path / "out"))
    (tmp_path / "out" / "index.json").write_text("{" if index == "text" else json.dumps(index))
    with pytest.raises(DataError, match=r"index.json is damaged \(.+\): prepare anew with overwrite=true$") as caught:
        run(check(compose("prepare", ["dataset=isaid", f"out={tmp_path / 'out'}", "verify=only"])))
    assert "\n" not in str(caught.value)


# Settings


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["dataset.prepare.sizes=3"], "unknown key `dataset.prepare.sizes`: did you mean `dataset.prepare.size`"),
        (["verfy=only"], "unknown key `verfy`: did you mean `verify`"),
        (["verify=maybe"], r"verify=maybe: expected true or false or only"),
        (["compression=4"], "compression=4: expected a whole number of at least 0 and of at most 3"),
        (["dataset.prepare.stride=40"], "windows of 32 px at stride 40 leave gaps"),
        (["dataset.prepare.size=null"], "dataset.prepare.stride=20 needs a size"),
        (["dataset.classes=[{name: a, color: '000000'}, {name: b, color: '000000'}]"], "same colour"),
        (["src=/nowhere"], "src=/nowhere does not exist"),
    ],
)
def test_faulty_settings(tmp_path: Path, overrides: list[str], text: str):
    with pytest.raises(ConfigError, match=text):
        configured("isaid", tmp_path, tmp_path / "out", *SIZES, *overrides)


def test_missing_settings():
    with pytest.raises(ConfigError, match="dataset=synthetic has no files to cut"):
        check(compose("prepare", ["dataset=synthetic", "src=.", "out=x"]))
    with pytest.raises(ConfigError, match="out is not set: add out=<folder for the patches>"):
        check(compose("prepare", ["dataset=isaid", "src=."]))
    with pytest.raises(ConfigError, match="src is not set: add src=<folder of the unpacked archive"):
        check(compose("prepare", ["dataset=isaid", "out=x"]))
