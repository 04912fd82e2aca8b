from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.building import augmentation, scene_dataset, train_loader
from data.fakes import COLORS, write

from pfseg.build_data import build_dataset
from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.data_settings import FolderData
from pfseg.config.schema import Train
from pfseg.data.base import Scene
from pfseg.data.tiling import windows
from pfseg.errors import DataError, JobError

SHAPES = {"a": (100, 150), "b": (40, 90), "c": (64, 64)}
ROOT = Path(__file__).parents[2]


def pixels(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(ord(name))
    shape = SHAPES[name]
    return rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 2, shape, np.uint8)


@pytest.fixture
def scenes(tmp_path: Path) -> list[Scene]:
    """Three scenes with masks in colours, and one of another split."""
    found = []
    for name in SHAPES:
        image, mask = pixels(name)
        scene = Scene(name, "train", tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name} ü.png")
        write(scene.image, image)
        write(scene.mask, COLORS[mask])
        found.append(scene)
    return [*found, Scene("d", "val", tmp_path / "gone.png", None)]


def cut(name: str, size: tuple[int, int], stride: tuple[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same windows cut by hand: the whole scene padded, then sliced."""
    image, mask = pixels(name)
    patches = {}
    for y0, y1, x0, x1 in windows(mask.shape, size, stride):
        patch, labels = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
        patch[: y1 - y0, : x1 - x0], labels[: y1 - y0, : x1 - x0] = image[y0:y1, x0:x1], mask[y0:y1, x0:x1]
        patches[f"train/{name}_{y0}_{y1}_{x0}_{x1}"] = patch, labels
    return patches


def test_samples_are_padded_windows(scenes):
    dataset = scene_dataset(scenes)
    samples = [dataset.read(index) for index in range(len(dataset))]
    wanted = {key: value for name in SHAPES for key, value in cut(name, (64, 64), (48, 48)).items()}
    assert [sample.name for sample in samples] == list(wanted)
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.image, wanted[sample.name][0])
        np.testing.assert_array_equal(sample.mask, wanted[sample.name][1])
        np.testing.assert_array_equal(dataset.read_mask(index), sample.mask)
        assert sample.image.flags.c_contiguous
        assert sample.mask.flags.c_contiguous
    assert (samples[-2].mask == 255).any()  # of scene b, which is smaller than a window


def test_without_a_size_scenes_are_taken_whole(scenes):
    dataset = scene_dataset(scenes, size=None, stride=None)
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset.read(1).image, pixels("b")[0])


def test_a_scene_is_decoded_once_and_again_when_it_changes(scenes, cache):
    dataset = scene_dataset(scenes)
    dataset.read(0)
    (stored,) = (cache / "scenes").glob("*.npy")  # of the scene that was read, and no other
    scenes[0].image.rename(scenes[0].image.with_name("away"))
    with pytest.raises(DataError, match=r"a.png cannot be read"):
        dataset.read(1)  # the file is part of the key
    write(scenes[0].image, pixels("a")[0])
    os.utime(scenes[0].image, ns=(0, 0))
    dataset.read(0)
    assert len(list((cache / "scenes").glob("*.npy"))) == 2
    other = scene_dataset(scenes, ignore=["010203"])
    other.read(0)
    assert len(list((cache / "scenes").glob("*.npy"))) == 3
    assert stored.stat().st_size > 100 * 150 * 4


def test_a_decoded_scene_is_used_without_its_file_being_read(scenes, cache):
    scene_dataset(scenes).read(0)
    (stored,) = (cache / "scenes").glob("*.npy")
    whole = np.load(stored, mmap_mode="r+")
    whole[0, 0] = (1, 2, 3, 1)
    whole.flush()
    sample = scene_dataset(scenes).read(0)
    assert sample.image[0, 0].tolist() == [1, 2, 3]
    assert sample.mask[0, 0] == 1


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_cache_is_made_again(scenes, cache, damage):
    scene_dataset(scenes).read(0)
    (stored,) = (cache / "scenes").glob("*.npy")
    stored.write_bytes(stored.read_bytes()[:-10000] if damage is None else damage)
    np.testing.assert_array_equal(scene_dataset(scenes).read(0).image, pixels("a")[0][:64, :64])


def read_all(scenes: list[Scene]) -> int:
    dataset = scene_dataset(scenes)
    return sum(int(dataset.read(index).mask.sum()) for index in range(len(dataset)))


def test_several_processes_at_once(scenes, cache):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(read_all, [scenes] * 3, chunksize=1))) == 1
    assert len(list((cache / "scenes").glob("*.npy"))) == 3
    assert not list((cache / "scenes").glob(".*.part"))


def test_a_full_disk_is_one_line(scenes, cache):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; from pathlib import Path; import tempfile\n"
        "from data.building import scene_dataset; from pfseg.data.base import Scene; "
        "from pfseg.errors import JobError\n"
        f"folder = Path({str(scenes[0].image.parent.parent)!r})\n"
        "scene = Scene('a', 'train', folder / 'images' / 'a.png', folder / 'masks' / 'a ü.png')\n"
        "try: scene_dataset([scene], on_error='skip').read(0)\n"
        "except JobError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, preexec_fn=limited, capture_output=True, text=True, check=True
    )
    assert "the decoded scene a (0 MiB) cannot be written to" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert "MiB free); free some space or set PFSEG_CACHE=<folder on another disk>" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert [path.suffix for path in (cache / "scenes").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_made(scenes, cache):
    cache.write_text("a file")
    with pytest.raises(JobError, match=r"cannot be written to .*cache/scenes: Not a directory .*PFSEG_CACHE="):
        scene_dataset(scenes).read(0)


def test_it_says_what_it_takes(scenes, cache):
    dataset = scene_dataset(scenes)
    dataset.read(0)
    text = dataset.describe()
    assert text.startswith("9 windows of 3 scenes, each decoded once into")
    assert f"{cache / 'scenes'} (1 are there; 0.00 GiB in all" in text
    assert dataset.image_files() == [scene.image for scene in scenes[:3]]


def test_scenes_that_cannot_be_used(scenes):
    write(scenes[0].mask, np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"a.png has 150x100 px but its mask .*ü.png 9x9; both must have the same size"):
        scene_dataset(scenes).read(0)
    scenes[1].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"b.png is empty"):
        scene_dataset(scenes)
    without = [Scene("e", "train", scenes[0].image, None), *scenes]
    with pytest.raises(DataError, match=r"scene .*a.png has no mask; add it, or .*on_error=skip"):
        scene_dataset(without)
    dataset = scene_dataset(without, on_error="skip")
    assert {scene.name for scene in dataset.scenes} == {"a", "c"}
    assert len(dataset.warnings) == 2
    with pytest.raises(DataError, match=r"no scene of the split 'test' can be used"):
        scene_dataset(scenes, split="test")


def test_unknown_colours_are_reported(scenes):
    write(scenes[2].mask, np.full((64, 64, 3), 9, np.uint8))
    dataset = scene_dataset(scenes)
    assert (dataset.read(len(dataset) - 1).mask == 255).all()
    assert "100 % of its pixels have colours outside" in dataset.warnings[0]


def test_classes_are_sampled_from_windows(scenes, cache):
    """A class of a single pixel in one scene is in half of the crops."""
    mask = pixels("a")[1]
    colors = COLORS[np.zeros_like(mask)]
    colors[70, 120] = COLORS[1]
    write(scenes[0].mask, colors)
    for scene in scenes[1:3]:
        write(scene.mask, COLORS[np.zeros(SHAPES[scene.name], np.uint8)])
    whole = augmentation(scale_range=[1, 1])
    loader = train_loader(scene_dataset(scenes), augment=whole, crop_size=(16, 16), batch_size=11, class_uniform=1.0)
    (batch,) = loader.epoch(0)
    assert sum((crop == 1).sum() == 1 for crop in batch["mask"]) in (5, 6)
    assert list(cache.glob("classes-*"))


def configured(root: Path, *overrides: str) -> FolderData:
    composed = compose("train", [f"dataset.root='{root}'", "dataset.source=scenes", "gpus=0", *overrides])
    return checked(composed, Train).dataset


def test_folders_as_scenes_by_configuration(town):
    table = "dataset.classes=[{name: roof, color: '3C1098'}, {name: road, color: [110, 193, 228]}]"
    given = [table, "dataset.prepare.size=32", "dataset.prepare.stride=16"]
    config = configured(town, "dataset=folder", *given)
    assert len(build_dataset(config, "train")) == 6 * 2 * 2
    val = build_dataset(config, "val")
    assert val.read(0).name == "val/tile 0_0_32_0_32"
    share = configured(town, "dataset=folder", *given, "dataset.splits={val: 0.25, seed: 0}")
    assert [len(build_dataset(share, split)) for split in ("train", "val")] == [24, 8]
    (town / "val" / "masks" / "tile 0.png").unlink()
    with pytest.raises(DataError, match=r"tile 0.jpg has no mask"):
        build_dataset(config, "val")
    assert len(build_dataset(config.model_copy(update={"on_error": "skip"}), "val")) == 4


def test_an_archive_as_scenes_by_configuration(tmp_path):
    folder = tmp_path / "train" / "images"
    write(folder / "P0001.png", np.zeros((900, 1500, 3), np.uint8))
    write(folder / "P0001_instance_color_RGB.png", np.full((900, 1500, 3), (0, 0, 63), np.uint8))
    dataset = build_dataset(configured(tmp_path, "dataset=isaid"), "train")
    names = [dataset.read(index).name for index in range(len(dataset))]
    assert names[:2] == ["train/P0001_0_896_0_896", "train/P0001_0_896_512_1408"]
    assert len(names) == 6
    assert (dataset.read(5).mask == 1).all()
    with pytest.raises(DataError, match=r"no scene of the split 'val'"):
        build_dataset(configured(tmp_path, "dataset=isaid"), "val")
