from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from data.building import augmentation, eval_loader, folder_dataset, synthetic, train_loader
from data.fakes import write

from pfseg.data.base import ClassInfo, Sample, SegmentationDataset
from pfseg.data.folder import FolderDataset
from pfseg.data.sampling import draw_partner
from pfseg.errors import DataError

AUGMENT = augmentation(scale_range=[0.5, 2], hflip=0.5, vflip=0.5, rot90=True, blur=[0.15, 1.3])


class Numbered(SegmentationDataset):
    """Grey image n of value n; its mask is n everywhere but for one pixel of class 9 in image 3."""

    classes = tuple(ClassInfo(str(label), (label, 0, 0)) for label in range(10))

    def __init__(self, count: int = 7) -> None:
        self.warnings, self.count = [], count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        mask = np.full((40, 40), index, dtype=np.uint8)
        if index == 3:
            mask[35, 4] = 9
        return Sample(np.full((40, 40, 3), index, dtype=np.uint8), mask, str(index))


def same(first: list[dict], second: list[dict]) -> bool:
    return [b["name"] for b in first] == [b["name"] for b in second] and all(
        (a[key] == b[key]).all() for a, b in zip(first, second, strict=True) for key in ("image", "mask", "edge")
    )


def test_batches_have_the_promised_form():
    loader = train_loader(
        synthetic("train", size=64, train_images=3),
        augment=AUGMENT,
        crop_size=(64, 96),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    batches = list(loader.epoch(0))
    assert len(batches) == loader.batches_per_epoch == 2
    for batch in batches:
        assert set(batch) == {"image", "mask", "edge", "name"}
        assert batch["image"].shape == (2, 3, 64, 96)
        assert batch["image"].dtype == batch["edge"].dtype == np.float32
        assert batch["mask"].shape == batch["edge"].shape == (2, 64, 96)
        assert batch["mask"].dtype == np.int32
        assert set(np.unique(batch["edge"])) <= {0, 1}
        assert all(array.flags.c_contiguous for key, array in batch.items() if key != "name")


def test_images_are_normalised_per_channel():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    loader = train_loader(Numbered(), mean=mean, std=std, batch_size=1)
    for batch in loader.epoch(0):
        expected = (int(batch["name"][0]) / 255 - mean) / std
        np.testing.assert_allclose(batch["image"][0, :, 7, 7], expected, rtol=1e-5, atol=1e-6)


def test_workers_change_nothing():
    dataset = synthetic("train", size=64, train_images=5)
    keywords = {"augment": AUGMENT, "class_uniform": 0.5}
    alone, helped = train_loader(dataset, **keywords), train_loader(dataset, workers=2, **keywords)
    for epoch in (0, 1):
        assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    assert not same(list(alone.epoch(0)), list(alone.epoch(1)))
    helped.close()


def test_an_epoch_goes_on_in_the_middle():
    loader = train_loader(synthetic("train", size=64, train_images=6), augment=AUGMENT)
    assert same(list(loader.epoch(3))[1:], list(loader.epoch(3, start=1)))


def test_ranks_share_the_global_batches():
    whole = list(train_loader(Numbered(8), batch_size=4).epoch(0))
    parts = [list(train_loader(Numbered(8), batch_size=2, rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert batch["name"] == parts[0][step]["name"] + parts[1][step]["name"]


def test_number_of_batches_is_a_multiple():
    loader = train_loader(Numbered(7), multiple=3)
    assert loader.batches_per_epoch == len(list(loader.epoch(0))) == 6


def test_classes_are_sampled_uniformly_with_their_places():
    settings = {"augment": augmentation(scale_range=[1, 1]), "crop_size": (8, 8), "class_uniform": 1.0, "multiple": 7}
    masks = np.concatenate([batch["mask"] for batch in train_loader(Numbered(6), **settings).epoch(0)])
    assert len(masks) == 14
    assert sum((mask == 9).sum() == 1 for mask in masks) == 2  # seven classes occur: twice each
    assert len(list(train_loader(Numbered(6), scale=0.5, **settings).epoch(0))) == 7


def test_resolution_comes_before_the_crop():
    dataset = synthetic("train", size=128, train_images=1)
    keywords = {"augment": augmentation(scale_range=[1, 1]), "crop_size": (64, 64), "batch_size": 1}
    (batch,) = train_loader(dataset, scale=0.5, **keywords).epoch(0)
    assert (batch["mask"][0] == dataset.read(0).mask[1::2, 1::2]).all()


def test_another_ignore_index():
    (batch,) = train_loader(
        Numbered(1), augment=augmentation(scale_range=[0.5, 0.5]), ignore_index=-1, batch_size=1
    ).epoch(0)
    assert set(np.unique(batch["mask"])) == {-1, 0}


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_end_the_epoch(town, workers):
    (town / "train" / "images" / "tile 4.jpg").write_bytes(b"")
    loader = train_loader(folder_dataset(town), workers=workers)
    with pytest.raises(DataError, match=r"tile 4.jpg is empty"):
        list(loader.epoch(0))
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_replaced_by_the_next(town, workers):
    (town / "train" / "images" / "tile 4.jpg").write_bytes(b"")
    (town / "train" / "masks" / "tile 0.png").unlink()
    write(town / "train" / "masks" / "tile 1.png", np.full((40, 48, 3), 9, np.uint8))
    dataset = folder_dataset(town, on_error="skip")
    loader = train_loader(dataset, workers=workers, class_uniform=0.3)
    batches = list(loader.epoch(0)) + list(loader.epoch(1))
    assert not any("tile 4" in name for batch in batches for name in batch["name"])
    warnings = loader.pop_warnings()
    assert len(warnings) == 3
    assert "tile 0.jpg has no mask" in warnings[0]
    assert any(text.startswith("left out: ") and "tile 4.jpg is empty" in text for text in warnings)
    assert any("tile 1.png: 100 % of its pixels" in text for text in warnings)
    assert loader.pop_warnings() == []
    loader.close()


def test_nothing_readable(town):
    for path in (town / "val" / "images").iterdir():
        path.write_bytes(b"")
    dataset = folder_dataset(town, split="val", on_error="skip")
    for share in (0.0, 0.5):
        with pytest.raises(DataError, match=r"none of the 2 samples can be read; the last: left out: .* is empty"):
            list(train_loader(dataset, class_uniform=share).epoch(0))


def test_faulty_settings():
    with pytest.raises(DataError, match="the training split is empty"):
        train_loader(Numbered(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_sample_once_in_order(workers):
    loaders = [eval_loader(Numbered(7), rank=rank, world_size=2, workers=workers) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [4, 3]
    assert [[index for index, _ in loader] for loader in loaders] == [[0, 2, 4, 6], [1, 3, 5]]
    assert [sample.name for _, sample in loaders[1]] == ["1", "3", "5"]
    for loader in loaders:
        loader.close()


def test_evaluation_leaves_out_and_counts(town):
    (town / "val" / "images" / "tile 0.jpg").write_bytes(b"")
    loader = eval_loader(folder_dataset(town, split="val", on_error="skip"))
    for _ in range(2):
        assert [index for index, _ in loader] == [1]
        assert loader.skipped == 1
    assert len(loader.pop_warnings()) == 1
    strict = eval_loader(folder_dataset(town, split="val"))
    with pytest.raises(DataError, match=r"tile 0.jpg is empty"):
        list(strict)


def test_a_part_of_another_sample_is_mixed_in():
    """Of images of one grey level each, a sample with two levels is a mixed one."""

    def batches(share: float, **keywords: object) -> list[dict]:
        loader = train_loader(Numbered(40), augment=augmentation(cutmix=share), batch_size=4, **keywords)
        return list(loader.epoch(0)) + list(loader.epoch(1))

    def mixed(batch: dict) -> list[bool]:
        return [len(np.unique(image)) > 1 for image in batch["image"]]

    plain, half = batches(0.0), batches(0.5)
    assert not any(flag for batch in plain for flag in mixed(batch))
    flags = [flag for batch in half for flag in mixed(batch)]
    assert 0.3 < np.mean(flags) < 0.7
    assert same(half, batches(0.5))
    for batch, untouched in zip(half, plain, strict=True):
        # image and mask come from the same places, and the other samples are as without it
        levels = np.rint(255 * batch["image"][:, 0])
        assert (levels == batch["mask"])[batch["mask"] != 9].all()
        kept = [not flag for flag in mixed(batch)]
        np.testing.assert_array_equal(batch["image"][kept], untouched["image"][kept])
    assert not same(half, batches(0.5, seed=1))


def test_what_is_mixed_in_is_drawn_class_by_class_too():
    settings = {"crop_size": (8, 8), "class_uniform": 1.0, "batch_size": 4}
    augment = augmentation(scale_range=[1, 1], cutmix=1.0)
    loader = train_loader(Numbered(40), augment=augment, **settings)
    draws = loader._index().draw(loader._order(0), share=1.0, seed=0, epoch=0)
    partners = [draw_partner(draws, position, share=loader.augment.cutmix, seed=0, epoch=0) for position in range(40)]
    assert all(partner in draws and partner.centre is not None for partner in partners)
    assert {partner.index for partner in partners} <= set(range(10))  # which hold the classes of the table


class Counted(FolderDataset):
    """Counts the masks that are read."""

    read_masks = 0

    def read_mask(self, index: int) -> np.ndarray:
        self.read_masks += 1
        return super().read_mask(index)


def places(root: Path, **keywords: object) -> tuple[int, np.ndarray]:
    dataset = folder_dataset(root, Counted, **keywords)
    found = train_loader(dataset, class_uniform=0.5)._index().places
    return dataset.read_masks, np.concatenate(found)


def test_places_of_classes_are_kept_beside_the_data(town):
    count, first = places(town)
    assert count == 6
    assert len(list((town / ".pfseg").glob("classes-*[!k]"))) == 1
    count, again = places(town)
    assert count == 0
    np.testing.assert_array_equal(first, again)
    assert places(town, ignore=["010203"])[0] == 6  # another table
    write(town / "train" / "masks" / "tile 5.png", np.zeros((40, 48), np.uint8))
    assert places(town)[0] == 6  # another file
    (town / "train" / "masks" / "tile 5.png").unlink()
    assert places(town, on_error="skip")[0] == 5  # one less


def test_looking_for_places_tells_how_far_it_is(town):
    heard = []
    for _ in range(2):
        loader = train_loader(folder_dataset(town), class_uniform=0.5)
        list(loader.epoch(0, progress=lambda done, total: heard.append((done, total))))
    assert heard == [(done, 6) for done in range(1, 7)]  # nothing is looked for the second time


def test_places_of_a_read_only_data_set_are_kept_in_the_common_folder(town, cache):
    town.chmod(0o555)
    try:
        assert places(town)[0] == 6
        assert not (town / ".pfseg").exists()
        assert len(list(cache.glob("classes-*[!k]"))) == 1
        assert places(town)[0] == 0
    finally:
        town.chmod(0o755)


def test_places_with_damaged_masks_left_out(town):
    (town / "train" / "masks" / "tile 2.png").write_bytes(b"")
    count, found = places(town, on_error="skip")
    assert count == 6
    assert set(found[:, 0]) == {0, 1, 3, 4, 5}
    assert places(town, on_error="skip")[0] == 0
    with pytest.raises(DataError, match=r"tile 2.png is empty"):
        list(train_loader(folder_dataset(town, Counted), class_uniform=0.5).epoch(0))


def test_places_of_a_data_set_that_says_nothing_about_its_masks_are_not_kept(cache):
    list(train_loader(Numbered(), class_uniform=0.5).epoch(0))
    assert not cache.exists()


def test_memory_of_the_loading_processes(town):
    dataset = folder_dataset(town)
    alone, helped = train_loader(dataset), train_loader(dataset, workers=1)
    for loader in (alone, helped):
        assert loader.worker_mib is None
        list(loader.epoch(0))
    assert alone.worker_mib is None
    assert 20 < helped.worker_mib < 2000
    helped.close()


class Logged(Numbered):
    """Notes in a file which samples are read."""

    def __init__(self, log: Path) -> None:
        super().__init__(40)
        self.log = log

    def read(self, index: int) -> Sample:
        with open(self.log, "a") as file:
            file.write(f"{index}\n")
        return super().read(index)


def test_only_a_few_batches_are_made_ahead(tmp_path):
    """What waits is bounded by batches, however slowly the training takes them."""
    log = tmp_path / "read"
    loader = train_loader(Logged(log), workers=1, batch_size=2)
    epoch = loader.epoch(0)
    next(epoch)
    time.sleep(1.5)
    assert len(log.read_text().split()) <= 2 * (1 + 2) + 1
    epoch.close()
    loader.close()
