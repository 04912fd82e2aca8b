"""Every model and every published recipe is composed, checked and trained for two steps on fake data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.fakes import write
from runs import CPU, SCENES, configured, rows

from pfseg.config.compose import config_dir, networks
from pfseg.launch.worker import job as run_worker

pytestmark = pytest.mark.slow

CONF = config_dir()
LENGTH = ["trainer.max_steps=2", "trainer.val_every=2"]  # with two images and two in a batch a step is an epoch
# Names as in the unpacked archives and the prepared patches: (image, mask) of each split.
LAYOUTS = {
    "dubai": ("Tile {n}/images/image_part_00{n}.jpg", "Tile {n}/masks/image_part_00{n}.png"),
    "isaid": (
        "{split}/images/P000{n}_0_896_512_1408.png",
        "{split}/masks/P000{n}_0_896_512_1408_instance_color_RGB.png",
    ),
    "potsdam": ("{split}/images/top_potsdam_2_1{n}.tif", "{split}/masks/top_potsdam_2_1{n}.tif"),
    "vaihingen": ("{split}/images/top_mosaic_09cm_area{n}.tif", "{split}/masks/top_mosaic_09cm_area{n}.tif"),
    "gaofen_img": ("{split}/image/{n}.tif", "{split}/gt/{n}.png"),
    "gaofen_sar": ("{split}/image/{n}.png", "{split}/gt/{n}.png"),
}


EDGES = ("edge_layer3", "edge_layer2", "edge_layer1")
TERMS = {  # of the loss beside that of the logits, by head
    "pfnet": EDGES,
    "pspnet": ("aux",),
    "deeplabv3plus": ("aux",),
    "ccnet": ("aux",),
    "uperhead": ("aux",),
    "pointrend": ("point",),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def fake(root: Path, dataset: dict[str, Any], size: int) -> None:
    """Write two images for training and two for validation, halves of which are the first two classes."""
    classes = dataset["classes"]
    if "id" in classes[0] and classes[0]["id"] is not None:
        codes = np.array([row["id"] for row in classes], np.uint8)
    else:
        colors = [row["color"] for row in classes]
        codes = np.array([list(bytes.fromhex(c)) if isinstance(c, str) else c for c in colors], np.uint8)
    number = 0
    for split in ("train", "val"):
        listed = []
        for _ in range(2):
            number += 1
            image, mask = (text.format(split=split, n=number) for text in LAYOUTS[dataset["name"]])
            rng = np.random.default_rng(number)
            write(root / image, rng.integers(0, 256, (size, size, 3), np.uint8))
            labels = np.zeros((size, size), np.int64)
            labels[: size // 2] = 1
            write(root / mask, codes[labels])
            listed.append(image)
        if dataset["splits"] and (source := dataset["splits"][split]).endswith(".txt"):
            (root / source).write_text("\n".join(listed))


def check_two_steps(config: dict[str, Any], folder: Path, names: tuple[str, ...]) -> None:
    result = run_worker(config, folder, lambda: False)
    assert result["status"] == "done"
    assert result["step"] == 2
    steps = rows(folder, "train")
    assert [row["step"] for row in steps] == [1, 2]
    assert steps[0]["train/lr"] > 0
    for row in steps:
        terms = [row[f"train/{name}"] for name in names]
        assert all(map(math.isfinite, terms))
        assert row["train/loss"] == pytest.approx(sum(terms))
    (validation,) = rows(folder, "val")
    assert 0 <= validation["val/mIoU"] <= 100
    assert validation["best"]
    for name in ("last", "best"):
        assert (folder / "checkpoints" / f"{name}.safetensors").stat().st_size > 1e6


HEADS = [name for name in options("model/head") if name != "common"]
BACKBONES = ["r2n101", "mscan_t", "convnext_t"]


@pytest.mark.parametrize("name", [*(f"{head}_r18" for head in HEADS), *(f"pfnet_{name}" for name in BACKBONES)])
def test_every_head_and_kind_of_backbone_trains(name: str, tmp_path: Path):
    given = [f"model={name}", "dataset.crop_size=64", "trainer.bn_batches=1"]
    config = configured(*given, *CPU, *SCENES, "dataset.train_images=2", *LENGTH)
    check_two_steps(config, tmp_path, ("seg", *TERMS.get(networks()[name][0], ())))


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_trains(name: str, tmp_path: Path):
    root = tmp_path / "data"
    root.mkdir()
    given = [f"experiment={name}", f"dataset.root={root}"]
    recipe = configured(*given)
    # The least that the network takes; with the pools of variant jittor halved, which need 448 px otherwise.
    jittor = recipe["model"].get("variant") == "jittor"
    size = 224 if jittor else 64
    sizes = [f"dataset.crop_size={size}", f"dataset.eval_size={size}"]
    sizes += ["model.edge_pool=7", "model.salient_pool=7"] if jittor else []
    batches = f"trainer.bn_batches={min(1, recipe['trainer']['bn_batches'])}"
    fake(root, recipe["dataset"], size)
    head, _ = networks().get(recipe["model"]["name"], ("", ""))
    names = ("focal",) if head == "farseg" else ("seg", *TERMS.get(head, ()))
    check_two_steps(configured(*given, *CPU, *sizes, batches, *LENGTH), tmp_path / "run", names)
