"""What a preparation says about its patches, and the check of them against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.fakes import tif, write
from data.published import (
    SIZES,
    TABLE,
    index_of,
    isaid,
    labels,
    pixels,
    prepared,
    tree,
)

from pfseg.commands.prepare import run
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.errors import DataError


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


def test_verification_finds_every_kind_of_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src)
    prepared("isaid", src, out, *SIZES)
    only = check(compose("prepare", ["dataset=isaid", f"out={out}", "verify=only"]))  # needs no archive
    run(only)
    assert f"42 files in {out} are as they were" in capsys.readouterr().out
    images, masks = out / "train/images", out / "train/masks"
    (images / "P0000_0_32_0_32.png").unlink()
    damaged = images / "P0000_20_52_0_32.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    flipped = bytearray((images / "P0000_38_70_0_32.png").read_bytes())
    flipped[200] ^= 1
    (images / "P0000_38_70_0_32.png").write_bytes(flipped)
    end = "instance_color_RGB.png"
    write(masks / f"P0002_0_32_0_32_{end}", np.full((32, 32), 77, np.uint8))
    (masks / f"P0002_38_70_0_32_{end}").unlink()
    write(images / "foreign.png", pixels(4, 4, 0))
    before = tree(out)
    with pytest.raises(DataError, match=r"6 faults, 37 files are as they were; the first: "):
        run(only)
    shown = capsys.readouterr().out
    for part in (
        "P0000_0_32_0_32.png cannot be read: No such file",
        "train/images/P0000_20_52_0_32.png has ",
        " bytes, expected ",
        "train/images/P0000_38_70_0_32.png is damaged or was changed (checksum ",
        f"train/masks/P0002_0_32_0_32_{end} has ",
        f"train/masks/P0002_38_70_0_32_{end} cannot be read: No such file",
        "train/images/foreign.png is not in the index",
    ):
        assert part in shown
    assert tree(out) == before  # nothing is written


def test_files_that_were_read_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A TIFF without compression has no checksum of its own."""
    src, out = tmp_path / "src", tmp_path / "out"
    for split in ("train", "val"):
        tif(src / split / "images" / "a.tif", pixels(32, 40, 1).transpose(2, 0, 1), photometric="rgb")
        write(src / split / "masks" / "a.png", np.zeros((32, 40), np.uint8))
    prepared("folder", src, out, *TABLE)
    both = check(compose("prepare", ["dataset=folder", *TABLE, f"src={src}", f"out={out}", "verify=only"]))
    run(both)
    assert f"8 files in {out} and {src} are as they were" in capsys.readouterr().out
    damaged = bytearray((src / "val/images/a.tif").read_bytes())
    damaged[-100] ^= 16
    (src / "val/images/a.tif").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"1 faults, 7 .* first: {src}/val/images/a.tif is damaged or was changed"):
        run(both)


def test_patches_of_the_first_versions_are_decoded(tmp_path: Path):
    out = tmp_path / "out"
    isaid(tmp_path / "src")
    prepared("isaid", tmp_path / "src", out, *SIZES)
    index = index_of(out)
    for part in index["splits"].values():
        for row in part["patches"]:
            del row["files"]
    del index["sources"]
    (out / "index.json").write_text(json.dumps(index))
    only = check(compose("prepare", ["dataset=isaid", f"out={out}", "verify=only"]))
    run(only)
    path = next((out / "train").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"1 faults, .* first: {path}"):
        run(only)


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
        lambda index: index | {"layout": index["layout"] | {"folders": {"train": 7}}},
        lambda index: index | {"layout": index["layout"] | {"folders": {"train": "/"}}},
        lambda index: index | {"layout": index["layout"] | {"lists": {"train": "../train.txt"}}},
        lambda index: index | {"splits": [1]},
        lambda index: index | {"splits": {"train": {"patches": [{"name": "a.png"}]}}},
        lambda index: index | {"splits": {"train": {"patches": [{"name": "a.png", "scene": "a", "window": [1]}]}}},
        lambda index: index | {"sources": {"a.png": 7}},
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
