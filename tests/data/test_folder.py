from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data.building import folder_dataset
from data.fakes import write

from pfseg.errors import ConfigError, DataError

DUBAI = Path(__file__).parents[3] / "shared" / "data" / "dubai"


def test_split_by_folders(town):
    train, val = folder_dataset(town), folder_dataset(town, split="val")
    assert (len(train), len(val)) == (6, 2)
    sample = train.read(2)
    assert sample.name == "train/images/tile 2.jpg"
    assert sample.image.shape == (40, 48, 3)
    assert (sample.mask[:3] == 0).all()
    assert (sample.mask[3:] == 1).all()
    np.testing.assert_array_equal(train.read_mask(2), sample.mask)
    assert train.warnings == []


def test_split_by_lists_through_nested_folders(town):
    (town / "Tile 1").mkdir()
    shutil.move(town / "val" / "images", town / "Tile 1" / "images")
    shutil.move(town / "val" / "masks", town / "Tile 1" / "masks")
    text = "# two\n\nTile 1/images/tile 1.jpg\nTile 1/images/tile 0.jpg\n"
    (town / "train.txt").write_text(text, encoding="utf-8")
    dataset = folder_dataset(town, splits={"train": "train.txt", "val": "val.txt"})
    assert [dataset.read(index).name for index in range(2)] == ["Tile 1/images/tile 1.jpg", "Tile 1/images/tile 0.jpg"]
    assert (dataset.read(0).mask == 0).sum() == 2 * 48


def test_split_by_ratio_parts_all_images_and_depends_on_the_seed(town):
    def names(split: str, seed: int) -> set[str]:
        dataset = folder_dataset(town, split=split, splits={"val": 0.25, "seed": seed})
        return {dataset.read(index).name for index in range(len(dataset))}

    train, val = names("train", 0), names("val", 0)
    assert (len(train), len(val)) == (6, 2)
    assert not train & val
    assert val == names("val", 0)
    assert any(val != names("val", seed) for seed in range(1, 5))


def test_other_folder_names_and_endings(town):
    shutil.move(town / "train" / "images", town / "train" / "rgb" / "8bit")
    shutil.move(town / "train" / "masks", town / "train" / "gt")
    mask = town / "train" / "gt" / "tile 0.png"
    mask.rename(mask.with_suffix(".PNG"))
    dataset = folder_dataset(town, images="rgb/8bit", masks="gt")
    assert len(dataset) == 6
    assert dataset.read(0).name == "train/rgb/8bit/tile 0.jpg"


def test_masks_with_a_suffix_in_the_same_folder(town):
    for mask in (town / "train" / "masks").iterdir():
        mask.rename(town / "train" / "images" / f"{mask.stem}_label.png")
    dataset = folder_dataset(town, masks="images", mask_suffix="_label")
    assert [image.name for image, _ in dataset.files] == [f"tile {number}.jpg" for number in range(6)]
    assert (dataset.read(2).mask == 0).sum() == 3 * 48
    (town / "train" / "images" / "tile 1_label.png").unlink()
    with pytest.raises(DataError, match=r"tile 1.jpg has no mask: expected .*images/tile 1_label\{.png,"):
        folder_dataset(town, masks="images", mask_suffix="_label")


def test_several_sources_make_one_split(town):
    (town / "few.txt").write_text("train/images/tile 1.jpg\nval/images/tile 0.jpg\n")
    dataset = folder_dataset(town, splits={"train": ["val", "few.txt"], "val": "val"})
    names = [dataset.read(index).name for index in range(len(dataset))]
    assert names == ["val/images/tile 0.jpg", "val/images/tile 1.jpg", "train/images/tile 1.jpg"]


def test_the_split_test(town):
    shutil.copytree(town / "val", town / "test")
    assert len(folder_dataset(town, split="test")) == 2


def test_bands_and_stretch_reach_the_image(town):
    pixels = np.linspace(100, 400, 40 * 48).reshape(40, 48).astype(np.uint16)
    (town / "train" / "images" / "tile 0.jpg").unlink()
    write(town / "train" / "images" / "tile 0.tif", np.dstack([pixels, pixels[::-1], pixels * 0]))
    image = folder_dataset(town, bands=[2, 1, 1], stretch=[0, 100]).read(0).image
    assert not image[..., 0].any()
    assert image[0, -1, 1] == 255
    assert image[-1, 0, 2] == 0


def test_what_is_known_about_masks_changes_with_them(town):
    first = folder_dataset(town).mask_key()
    assert folder_dataset(town).mask_key() == first
    assert folder_dataset(town, ignore=["010203"]).mask_key() != first
    os.utime(town / "train" / "masks" / "tile 0.png", ns=(1, 1))
    assert folder_dataset(town).mask_key() != first


def test_of_several_masks_the_lossless_one_is_taken(town):
    write(town / "train" / "masks" / "tile 0.jpg", np.zeros((40, 48), np.uint8))
    assert folder_dataset(town).files[0][1].suffix == ".png"


def test_missing_root_and_folders(town):
    with pytest.raises(DataError, match=r"data folder nowhere not found \(looked in /.*nowhere\).*dataset.root="):
        folder_dataset(Path("nowhere"))
    with pytest.raises(DataError, match=r"folder .*/oops of the split 'train' not found; .*dataset.splits.train"):
        folder_dataset(town, splits={"train": "oops", "val": "val"})
    with pytest.raises(DataError, match=r"list .*oops.txt not found; expected one image path per line"):
        folder_dataset(town, splits={"train": "oops.txt", "val": "val"})
    with pytest.raises(DataError, match=r"no images below .*train: looked for pictures/\*"):
        folder_dataset(town, images="pictures")


def test_a_list_without_images(town):
    (town / "train.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=r"list .*train.txt names no image"):
        folder_dataset(town, splits={"train": "train.txt"})
    (town / "train.txt").write_text("train/images/gone.jpg\n")
    with pytest.raises(DataError, match=r"gone.jpg of the list .* not found; paths .* relative to .*on_error=skip"):
        folder_dataset(town, splits={"train": "train.txt"})


def test_a_listed_image_outside_the_image_folders(town):
    (town / "train.txt").write_text("train/masks/tile 0.png\n")
    with pytest.raises(DataError, match=r"tile 0.png lies in no folder called 'images'"):
        folder_dataset(town, splits={"train": "train.txt"})


def test_image_without_mask(town):
    (town / "train" / "masks" / "tile 3.png").unlink()
    with pytest.raises(DataError, match=r"tile 3.jpg has no mask: expected .*masks/tile 3\{.png,.*on_error=skip"):
        folder_dataset(town)
    dataset = folder_dataset(town, on_error="skip")
    assert len(dataset) == 5
    assert len(dataset.warnings) == 1
    assert dataset.warnings[0].startswith("left out: ")
    shutil.rmtree(town / "val" / "masks")
    with pytest.raises(DataError, match=r"none of the 2 images of the split 'val' .* has a mask"):
        folder_dataset(town, split="val", on_error="skip")


def test_sizes_differ(town):
    write(town / "train" / "masks" / "tile 0.png", np.zeros((40, 47), np.uint8))
    with pytest.raises(DataError, match=r"tile 0.jpg has 48x40 px but its mask train/masks/tile 0.png 47x40"):
        folder_dataset(town).read(0)


def test_unknown_colours_are_gathered(town):
    write(town / "train" / "masks" / "tile 0.png", np.full((40, 48, 3), 9, np.uint8))
    dataset = folder_dataset(town)
    assert (dataset.read(0).mask == 255).all()
    assert "train/masks/tile 0.png: 100 % of its pixels" in dataset.warnings[0]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"split": "extra"}, "splits has no folder or list for 'extra'"),
        ({"splits": {"train": []}}, "splits has no folder or list for 'train'"),
        ({"splits": {"train": ["train", 3]}}, "splits has no folder or list for 'train'"),
        ({"masks": "images"}, r"images and masks both lie in folders called 'images': .*dataset.mask_suffix"),
        ({"splits": {"train": 3}}, "splits has no folder or list for 'train'"),
        ({"splits": {"val": 1.5}}, "is no share; expected"),
        ({"splits": {"val": 0.2, "train": "train"}}, "is no share; expected"),
    ],
)
def test_faulty_settings(town, keywords, message):
    with pytest.raises(ConfigError, match=message):
        folder_dataset(town, **keywords)


def test_a_ratio_needs_two_images(town):
    for number in range(1, 6):
        (town / "train" / "images" / f"tile {number}.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images below .* cannot be split with val=0.5"):
        folder_dataset(town / "train", splits={"val": 0.5})


@pytest.mark.shared_data("dubai")
def test_dubai():
    rows = [
        {"name": name, "color": color}
        for name, color in zip("abcde", ("3C1098", "8429F6", "6EC1E4", "FEDD3A", "E2A929"), strict=True)
    ]
    splits = {"train": "split_train.txt", "val": "split_val.txt"}
    sets = [
        folder_dataset(DUBAI, split=split, classes=rows, splits=splits, ignore=["9B9B9B", "000000"]) for split in splits
    ]
    assert [len(dataset) for dataset in sets] == [54, 9]
    masks = [dataset.read_mask(index) for dataset in sets for index in (0, 5)]
    assert {int(label) for mask in masks for label in np.unique(mask)} <= {0, 1, 2, 3, 4, 255}


def test_lists_of_windows_editors_lose_no_file(town):
    """A byte order mark, and lines that end in CRLF."""
    lines = [f"train/images/tile {number}.jpg" for number in range(4)]
    (town / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert len(folder_dataset(town, splits={"train": "train.txt"})) == 4


def test_lists_in_another_coding_and_with_names_too_long(town):
    (town / "train.txt").write_bytes("train/images/Straße.jpg\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list .*train.txt is not UTF-8 \(byte 17 is 0xdf\): save it as UTF-8"):
        folder_dataset(town, splits={"train": "train.txt"})
    (town / "train.txt").write_text(f"train/images/{'a' * 300}.jpg\n")
    with pytest.raises(DataError, match=r"a{300}.jpg of the list .*train.txt not found"):
        folder_dataset(town, splits={"train": "train.txt"})


def test_folders_with_brackets_and_hidden_ones(town):
    (town / "train").rename(town / "train [1]")
    assert len(folder_dataset(town, splits={"train": "train [1]"})) == 6
    (town / "train [1]" / "images").rename(town / "train [1]" / "images [rgb]")
    assert len(folder_dataset(town, splits={"train": "train [1]"}, images="images [rgb]")) == 6
    hidden = town / "val" / ".ipynb_checkpoints"
    shutil.copytree(town / "val" / "images", hidden / "images")
    shutil.copytree(town / "val" / "masks", hidden / "masks")
    assert len(folder_dataset(town, split="val", splits={"val": "val"})) == 2


@pytest.mark.parametrize("splits", [{"train": "train"}, {"val": 0.2}, {"train": "train.txt"}])
def test_the_same_image_in_two_formats_is_one_sample(town, splits):
    for number in range(3):
        write(town / "train/images" / f"tile {number}.png", np.zeros((40, 48, 3), np.uint8))
    images = sorted((town / "train/images").iterdir())
    (town / "train.txt").write_text("".join(f"{path.relative_to(town)}\n" for path in images))
    dataset = folder_dataset(town, splits=splits)
    stems = [path.with_suffix("") for path in dataset.image_files()]
    assert len(stems) == len(set(stems))
    assert dataset.warnings == [
        f"left out: 3 images that differ from others in the ending only, such as {images[0]}: tile 0.png is taken"
    ]
