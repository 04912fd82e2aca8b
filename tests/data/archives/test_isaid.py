from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from data.fakes import write
from data.published import SHARED, isaid, opened, palette, prepared

from pfseg.data.archives.isaid import find_scenes
from pfseg.data.reader import ImageReader
from pfseg.errors import DataError

SAMPLES = SHARED / "isaid"


@pytest.mark.parametrize("masks_in", ["images", "Semantic_masks/images", "Semantic_masks"])
def test_masks_are_found_in_each_place(tmp_path: Path, masks_in: str):
    isaid(tmp_path, masks_in=masks_in)
    scenes = find_scenes(tmp_path, leave_out=[])
    assert [(scene.split, scene.name) for scene in scenes] == [
        ("train", "P0000"),
        ("train", "P0002"),
        ("val", "P0003"),
        ("test", "P0006"),
    ]
    assert scenes[0].image == tmp_path / "train" / "images" / "P0000.png"
    assert scenes[0].mask == tmp_path / "train" / masks_in / "P0000_instance_color_RGB.png"
    assert scenes[3].mask is None
    assert scenes.faults == []
    assert scenes.notes[0] == "train: 2 scenes; the complete archive has 1,411"


def test_half_an_archive(tmp_path: Path):
    isaid(tmp_path)
    (tmp_path / "train/images/P0000.png").unlink()
    (tmp_path / "val/images/P0003_instance_color_RGB.png").unlink()
    scenes = find_scenes(tmp_path, leave_out=[])
    assert [scene.name for scene in scenes] == ["P0002", "P0003", "P0006"]
    assert scenes[1].mask is None
    (fault,) = scenes.faults
    assert fault.startswith(f"mask {tmp_path}/train/images/P0000_instance_color_RGB.png has no image: expected")


def test_scenes_to_leave_out(tmp_path: Path):
    isaid(tmp_path)
    scenes = find_scenes(tmp_path, leave_out=["P0002"])
    assert [scene.name for scene in scenes] == ["P0000", "P0003", "P0006"]
    assert scenes.faults == []
    assert scenes.notes[0] == "train: 1 scenes; the complete archive has 1,410 without P0002"


def test_a_wrong_folder_says_what_lies_there(tmp_path: Path):
    write(tmp_path / "pictures" / "a.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no scenes of iSAID in .*: looked for \{train.*; found notes.txt, pictures/"):
        find_scenes(tmp_path, leave_out=[])


def test_each_patch_is_its_window_and_pads_with_ignore(tmp_path: Path):
    src, out = tmp_path / "src", tmp_path / "out"
    isaid(src, size=(70, 30))
    data = prepared("isaid", src, out, "dataset.prepare.size=40", "dataset.prepare.stride=25")
    train = opened(data, "train")
    assert [image.name for image, _ in train.files] == [
        f"{name}_{rows}_0_30.png" for name in ("P0000", "P0002") for rows in ("0_40", "25_65", "30_70")
    ]
    assert train.files[0][1].name == "P0000_0_40_0_30_instance_color_RGB.png"
    scene, truth = (ImageReader().read(src / "train/images" / f"P0000{end}.png") for end in ("", "_instance_color_RGB"))
    sample = train.read(1)
    np.testing.assert_array_equal(sample.image[:, :30], scene[25:65])
    np.testing.assert_array_equal(palette("isaid")[sample.mask[:, :30]], truth[25:65])
    assert not sample.image[:, 30:].any()
    assert (sample.mask[:, 30:] == 255).all()
    assert sample.mask.shape == (40, 40)
    assert cv2.imread(str(train.files[1][1]), cv2.IMREAD_UNCHANGED).shape == (40, 40)  # one channel
    assert sorted(path.name for path in (out / "test/images").iterdir())[0] == "P0006_0_40_0_30.png"
    assert not list((out / "test").glob("masks/*"))


@pytest.mark.shared_data("isaid")
def test_patches_of_real_scenes_reassemble_to_them(tmp_path: Path):
    data = prepared("isaid", SAMPLES, tmp_path / "out")
    colors = np.concatenate([palette("isaid"), np.full((240, 3), 9, np.uint8)])
    for split, names in (("train", ["P0005"]), ("val", ["P0003", "P0004"])):
        dataset = opened(data, split)
        for name in names:
            scene = ImageReader().read(SAMPLES / split / "images" / f"{name}.png")
            truth = ImageReader().read(SAMPLES / split / "images" / f"{name}_instance_color_RGB.png")
            image, mask = np.full_like(scene, 77), np.full_like(truth, 77)
            for index, (path, _) in enumerate(dataset.files):
                if not path.name.startswith(f"{name}_"):
                    continue
                y0, y1, x0, x1 = map(int, path.stem.split("_")[1:])
                sample = dataset.read(index)
                assert sample.mask.shape == (896, 896)
                image[y0:y1, x0:x1] = sample.image[: y1 - y0, : x1 - x0]
                mask[y0:y1, x0:x1] = colors[sample.mask[: y1 - y0, : x1 - x0]]
            np.testing.assert_array_equal(image, scene)
            np.testing.assert_array_equal(mask, truth)
