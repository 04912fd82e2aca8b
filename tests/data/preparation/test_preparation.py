"""Archives and folders to patches that the data set reads back with the same settings; and what goes wrong."""

from __future__ import annotations

import re
import resource
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.fakes import CLASSES, COLORS, tif, write
from data.published import (
    SHARED,
    SIZES,
    TABLE,
    configured,
    index_of,
    isaid,
    labels,
    opened,
    pixels,
    prepared,
    refused,
    tree,
)

from pfseg.build_data import build_dataset, follow_record, input_record
from pfseg.config.check import check, checked
from pfseg.config.compose import compose
from pfseg.config.data_settings import FolderData
from pfseg.config.schema import Train
from pfseg.data.inputs import patch_bands
from pfseg.data.reader import ImageReader
from pfseg.errors import ConfigError


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
    told = capsys.readouterr().out
    assert "dataset.splits" not in told and "dataset.bands" not in told  # null by themselves
    assert [len(opened(data.model_copy(update={"splits": None}), split)) for split in ("train", "val")] == [6, 2]
    names = {path.name for path in (out / "train/images").iterdir()} | {p.name for p in (out / "val/images").iterdir()}
    assert len(names) == 8
    assert "train_tile 0_0_40_0_48.png" in names


def test_the_command_to_train_by_is_whole(town: Path, capsys: pytest.CaptureFixture[str]):
    """With the class table and whatever else differs from the YAML file; bands and stretch are done already."""
    out = town.parent / "out 1"
    given = [*TABLE, "dataset.name=my town", "dataset.ignore=['9B9B9B',7]", "dataset.crop_size=64"]
    prepared("folder", town, out, *given, "dataset.bands=[2,1,0]", "dataset.stretch=[2,98]")
    (command,) = re.findall(r"train: pfseg train (.*)", capsys.readouterr().out)
    data = checked(compose("train", [*shlex.split(command), "gpus=0", "ranks=1"]), Train).dataset
    assert (data.name, data.crop_size, data.root) == ("my town", (64, 64), str(out))
    assert isinstance(data, FolderData) and data.bands is None and data.stretch is None
    assert data.ignore == ["9B9B9B", 7]
    assert [row["name"] for row in data.classes] == [row["name"] for row in CLASSES]


def test_what_patches_were_made_of_is_in_the_index(town: Path):
    """Percentiles over the training images become numbers, found once; the network's record tells them all."""
    root = town.parent / "many"
    for split, top in (("train", 3000), ("val", 9000)):
        for path in sorted((town / split / "images").iterdir()):
            bands = np.random.default_rng(len(path.name)).integers(0, top + 1, (4, 40, 48)).astype(np.uint16)
            tif(root / split / "images" / f"{path.stem}.tif", bands, photometric="minisblack")
        shutil.copytree(town / split / "masks", root / split / "masks")
    out = town.parent / "out"
    how = ["dataset.bands=[3,0,1]", "dataset.stretch={percentiles:[0,100]}"]
    data = prepared("folder", root, out, *TABLE, *how)
    record = index_of(out)["input"]
    assert record["bands"] == [3, 0, 1]
    np.testing.assert_allclose(record["stretch"]["range"], [[0, 3000]] * 3, atol=5)
    assert (record["seen"]["type"], record["seen"]["bands"]) == ("uint16", 4)
    assert not (root / ".pfseg").exists()
    patches = data.model_copy(update={"root": str(out), "bands": None, "stretch": None})
    dataset = build_dataset(patches, "train")
    network = input_record(patches, dataset)
    assert {key: network[key] for key in record} == record and network["mean"] == list(data.mean)
    follow_record(scenes := data.model_copy(update={"bands": None, "stretch": None, "root": str(root)}), network, ())
    assert np.array_equal(build_dataset(scenes, "train").read(0).image, dataset.read(0).image)
    follow_record(patches, network, ())
    assert patches.bands is None


def many_bands(root: Path, count: int) -> None:
    """Images of 16 bits, part of each without data."""
    for number, split in enumerate(("train", "train", "val")):
        bands = np.random.default_rng(number).integers(1, 3000, (count, 40, 48)).astype(np.uint16)
        bands[:, :9, number:20] = 0
        tif(root / split / "images" / f"{number}.tif", bands, photometric="minisblack", nodata=0)
        write(root / split / "masks" / f"{number}.png", COLORS[labels(40, 48, number, 2)])


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_patches_of_any_number_of_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int):
    """They are trained on by the printed command, and are what the network would get of the files."""
    many_bands(tmp_path / "src", count)
    bands, shown = [*range(count)][::-1], [count - 1, 0, count // 2]
    given = [*TABLE, f"dataset.bands={bands}", "dataset.stretch=[2,98]", f"dataset.display_bands={shown}"]
    data = prepared("folder", tmp_path / "src", tmp_path / "out", *given)
    (command,) = re.findall(r"train: pfseg train (.*)", capsys.readouterr().out)
    patches = checked(compose("train", [*shlex.split(command), "gpus=0", "ranks=1"]), Train).dataset
    assert isinstance(patches, FolderData) and patches.bands == (*range(count),) and patches.stretch is None
    assert patches.display_bands == tuple(bands.index(band) for band in shown) and patches.mean is None
    for split in ("train", "val"):
        ours, theirs = pairs(patches, split), pairs(data.model_copy(update={"root": str(tmp_path / "src")}), split)
        for (image, mask), (scene, truth) in zip(ours, theirs, strict=True):
            assert image.shape == (40, 48, count)
            np.testing.assert_array_equal(image, scene)
            np.testing.assert_array_equal(mask, truth)
    record = input_record(patches, opened(patches, "train"))
    assert record["bands"] == bands and list(record["stretch"]) == [2, 98]
    path = opened(patches, "val").files[0][0]
    assert path.suffix == (".png" if count == 1 else ".tif")
    reader = ImageReader(patch_bands(tmp_path / "out", record["bands"]))
    np.testing.assert_array_equal(reader.read(path), pairs(patches, "val")[0][0])
    prepared("folder", tmp_path / "src", tmp_path / "out", *given)
    assert "3 scenes had been finished before" in capsys.readouterr().out


def test_bands_of_patches_in_another_order(town: Path):
    """Which bands of the files they are is known only if the preparation was told."""
    patches = prepared("folder", town, town.parent / "out", *TABLE).model_copy(update={"bands": (2, 1, 0)})
    with pytest.raises(ConfigError, match=r"dataset.bands=\[2, 1, 0\] puts the bands of the patches in .* in another"):
        input_record(patches, opened(patches, "train"))


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
    monkeypatch.setattr("pfseg.data.sources._LARGE", 0)
    monkeypatch.setattr("pfseg.data.preparation.cutting._SMALL", 0)
    prepared("folder", town, town.parent / "from disk", *TABLE)
    assert tree(town.parent / "from disk") == tree(town.parent / "out")
    check_same(data, town)
    broken = next(town.glob(f"train/images/*{suffix}"))
    broken.write_bytes(broken.read_bytes()[:-40])
    text = refused("folder", town, town.parent / "out", *TABLE)
    assert "1 of 8 scenes failed" in text


@pytest.mark.parametrize("compression", [0, 3])
def test_every_compression_holds_the_same(town: Path, compression: int):
    out = town.parent / "out"
    data = prepared("folder", town, out, *TABLE, f"compression={compression}")
    check_same(data, town)


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
    assert f"{out}/train/images/P0002_0_200_0_200.png can't be written (File too large); free some space" in text
    assert "then give the same command again to continue; what was written is kept" in text
    assert (out / "train/images/P0000_0_20_0_20.png").is_file()
    assert not list(out.rglob("*.part"))
    data = prepared("isaid", src, out, *sizes)
    assert len(opened(data, "train")) == 2


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
        (["dataset.display_bands=[3,0,1]"], "band 3 is not among the network's bands"),
    ],
)
def test_faulty_settings(tmp_path: Path, overrides: list[str], text: str):
    with pytest.raises(ConfigError, match=text):
        configured("isaid", tmp_path, tmp_path / "out", *SIZES, *overrides)


def test_missing_settings():
    with pytest.raises(ConfigError, match="dataset=synthetic has no files to cut"):
        check(compose("prepare", ["dataset=synthetic", "src=.", "out=x"]))
    with pytest.raises(ConfigError, match="out is not set: add out=<folder for the patches"):
        check(compose("prepare", ["dataset=isaid", "src=."]))
    with pytest.raises(ConfigError, match="src is not set: add src=<folder of the unpacked archive"):
        check(compose("prepare", ["dataset=isaid", "out=x"]))
