"""evaluate.py from end to end: windows, views, scenes, ranks, several checkpoints, and what it leaves."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import golden
import numpy as np
import pytest
from browser import Browser
from data.fakes import COLORS, write
from data.published import labels, pixels, prepared
from exported import export
from runs import ROOT, finished, rows, start, stored

from pfseg.build import build_model
from pfseg.config.check import check, checked
from pfseg.config.compose import compose, run_folder
from pfseg.config.schema import Train
from pfseg.errors import CheckpointError, ConfigError, DataError
from pfseg.launch.worker import job as run_worker
from pfseg.metrics.confusion import scores
from pfseg.runtime import jt
from pfseg.tracking.samples import read_maps
from pfseg.tracking.wandb_media import sample_pictures
from pfseg.weights.checkpoint import load_checkpoint, save_checkpoint
from pfseg.weights.transfer import export_weights

pytestmark = pytest.mark.slow

TABLE = ["dataset.classes=[{name: roof, color: '3C1098'}, {name: road, color: [110, 193, 228]}]"]
SMALL = ["model.fpn_dim=32", "model.match_dim=16", "gpus=0", "ranks=1", "logger=none", "batch_size=2"]
FILES = {"classes.csv", "confusion.csv", "confusion.png", "images.csv", "samples.png", "worst.png", "best.png"}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of 64 px at stride 40 of two scenes in val."""
    source = tmp_path_factory.mktemp("scenes")
    for seed, (name, shape) in enumerate({"a": (64, 104), "b": (104, 64)}.items()):
        for split in ("train", "val"):
            mask = cv2.resize(labels(6, 6, seed, 2), shape[::-1], interpolation=cv2.INTER_NEAREST)
            write(source / split / "masks" / f"{name}.png", COLORS[mask])
            write(source / split / "images" / f"{name}.png", pixels(*shape, seed) // 4 + 150 * mask[..., None])
    out = tmp_path_factory.mktemp("patches") / "town"
    prepared("folder", source, out, *TABLE, "dataset.prepare.size=64", "dataset.prepare.stride=40")
    return out


@pytest.fixture(scope="module")
def checkpoints(town: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks without training, each in a run folder of its own."""
    given = ["dataset=folder", f"dataset.root={town}", *TABLE, "dataset.crop_size=64", "model=pfnet_r18", *SMALL]
    settings = checked(compose("train", given), Train)
    found = []
    network = golden.fill(build_model(settings.model, 2))
    weights = export_weights(network)
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    with jt.no_grad():
        logits = network.predict(jt.array(image)).numpy()
    # Half of the pixels to each class, so that scores tell something.
    weights["head.conv_last.1.bias"][1] -= np.median(logits[:, 1] - logits[:, 0])
    for name in ("first", "second"):
        weights["head.conv_last.1.weight"] = -weights["head.conv_last.1.weight"]
        weights["head.conv_last.1.bias"] = -weights["head.conv_last.1.bias"]
        path = tmp_path_factory.mktemp(name) / "checkpoints" / "best.safetensors"
        save_checkpoint(path, weights, {"config": settings.dump(), "progress": {"step": 7}, "epoch": 0})
        found.append(path)
    return found


def evaluated(folder: Path, *overrides: str) -> dict[str, Any]:
    run_worker(check(compose("evaluate", ["gpus=0", "ranks=1", *overrides])).dump(), folder, lambda: False)
    return stored(folder / "results.json")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def onnx_file(checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoints[0], tmp_path_factory.mktemp("exported") / "model.onnx")


VIEWS = ["score=both", "eval_size=64", "overlap=0.25", "flips=hv", "exclude=[road]", "num_samples=2", "contrast=50"]


@pytest.fixture(scope="module")
def both(checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    evaluated(folder, f"checkpoint={checkpoints[0]}", *VIEWS)
    return folder


def test_a_temperature_is_found_and_kept(checkpoints: list[Path], tmp_path: Path):
    copy = tmp_path / "best.safetensors"  # so that no other test follows the temperature
    copy.write_bytes(checkpoints[0].read_bytes())
    found = evaluated(tmp_path / "one", f"checkpoint={copy}", "calibrate=true")["calibration"]
    assert found["fitted_on"] == found["measured_on"] == 2
    assert (tmp_path / "one" / "reliability.png").is_file()
    assert "confidence and accuracy" in (tmp_path / "one" / "results.html").read_text()
    assert stored(tmp_path / "best.calibration.json")["temperature"] == found["temperature"]
    assert any("fitted on 2 images" in row["text"] for row in rows(tmp_path / "one", "message"))


def test_calibration_takes_windows_as_validation_does(checkpoints: list[Path]):
    with pytest.raises(ConfigError, match="calibrate=true takes windows as validation does: leave out score, overlap"):
        check(compose("evaluate", [f"checkpoint={checkpoints[0]}", "calibrate=true", "flips=h"]))


def test_an_onnx_file_scores_as_its_checkpoint(both: Path, onnx_file: Path, town: Path, tmp_path: Path):
    expected = stored(both / "results.json")
    found = evaluated(tmp_path / "onnx", f"checkpoint={onnx_file}", *VIEWS)
    assert found["mIoU"] == pytest.approx(expected["mIoU"], abs=0.1)
    assert found["scenes"]["mIoU"] == pytest.approx(expected["scenes"]["mIoU"], abs=0.1)
    assert np.abs(np.subtract(found["confusion"], expected["confusion"])).sum() <= 0.001 * np.sum(found["confusion"])
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {path.name for path in both.iterdir()}


def test_scoring_an_onnx_file_needs_neither_jittor_nor_a_compiler(onnx_file: Path, tmp_path: Path):
    arguments = [f"checkpoint={onnx_file}", "launch=inline", f"hydra.run.dir={tmp_path / 'scores'}"]
    program = (
        "import shutil, sys\nfrom pfseg.commands.app import run\n"
        f"assert shutil.which('g++') is None\ncode = run('evaluate', {arguments})\n"
        "assert not {'jittor', 'jittor_utils'} & set(sys.modules)\nsys.exit(code)"
    )
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path, timeout=120)
    assert stored(tmp_path / "scores" / "results.json")["images"] == 4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_and_what_they_cost(
    precision: str, checkpoints: list[Path], onnx_file: Path, town: Path, tmp_path: Path, capsys: Any
):
    given = [f"images={town / 'val' / 'images'}"] if precision == "int8" else []
    out = export(checkpoints[0], tmp_path / "m.onnx", f"precision={precision}", f"dataset.root={town}", *given)
    told = re.search(
        rf"([\d.]+) in fp32, ([\d.]+) in {precision}: ([-+][\d.]+) on 4 images of val", capsys.readouterr().out
    )
    assert told and abs(float(told[3])) < 5
    whole, made = onnx_file.stat().st_size, out.stat().st_size
    assert made < {"fp16": 0.6, "int8": 0.35}[precision] * whole
    found = evaluated(tmp_path / "scores", f"checkpoint={out}")
    assert found["mIoU"] == pytest.approx(float(told[2]), abs=0.01)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["eval_size=96"], r"model.onnx takes images of 64x64 px only: leave out eval_size and scales, or export"),
        (["eval_size=whole"], "takes images of 64x64 px only"),
        (["scales=[0.5,1]"], "takes images of 64x64 px only"),
        (["ranks=2"], "ranks=2: .*model.onnx runs in one rank"),
    ],
)
def test_what_an_onnx_file_cannot_do(overrides: list[str], text: str, onnx_file: Path):
    with pytest.raises(ConfigError, match=text):
        check(compose("evaluate", ["gpus=0", f"checkpoint={onnx_file}", *overrides]))


def test_everything_that_an_evaluation_leaves(both: Path, checkpoints: list[Path]):
    results = stored(both / "results.json")
    assert (results["images"], results["scenes"]["images"]) == (4, 2)
    assert np.all(results["confusion"]), "the network tells the classes apart, if badly"
    assert (results["flips"], results["overlap"], results["eval_size"]) == ("hv", 0.25, [64, 64])
    assert results["contrast"] == 50
    assert results["checkpoint"] == str(checkpoints[0])
    pixels_of_scenes = 2 * 64 * 104
    for folder, part, count in ((both, results, 4 * 64 * 64), (both / "scenes", results["scenes"], pixels_of_scenes)):
        assert FILES <= {path.name for path in folder.iterdir()}
        confusion = np.array(part["confusion"])
        assert confusion.sum() == count
        expected = scores(confusion, ["roof", "road"], ["road"])
        assert part["mIoU"] == pytest.approx(expected["mIoU"]) == pytest.approx(part["IoU/roof"])
        matrix = [[int(row["roof"]), int(row["road"])] for row in table(folder / "confusion.csv")]
        assert matrix == part["confusion"]
        for row, pixels_of_class in zip(table(folder / "classes.csv"), confusion.sum(axis=1), strict=True):
            assert int(row["pixels"]) == pixels_of_class
            for column in ("IoU", "precision", "recall", "F1"):
                value = part[f"{column}/{row['class']}"]
                assert row[column] == "" if value is None else float(row[column]) == pytest.approx(value)
        images = table(folder / "images.csv")
        assert len(images) == part["images"]
        assert [row["image"] for row in images] == sorted(row["image"] for row in images)
        for file in ("confusion.png", "samples.png", "worst.png", "best.png"):
            assert cv2.imread(str(folder / file)) is not None
    (row,) = rows(both, "val")
    assert (row["val/mIoU"], row["val/scenes_mIoU"]) == (results["mIoU"], results["scenes"]["mIoU"])
    assert row["exclude"] == ["road"]


def test_the_worst_and_best_images_can_be_overlaid(both: Path):
    (row,) = rows(both, "val")
    names = [sample["name"] for sample in row["samples"]]
    scored = {image["image"]: float(image["mIoU"]) for image in table(both / "images.csv")}
    ranked = sorted(scored.values())
    assert [scored[name] for name in names] == [*ranked[:2], *ranked[:-3:-1]]
    samples = read_maps(both, row["samples"])
    assert len(samples) == 4 and all(sample.pred.shape == sample.mask.shape == (64, 64) for sample in samples)
    overlays = sample_pictures(samples, ["roof", "road"], None)
    assert [image._caption for image in overlays["val/masks"]] == names and "val/edges" not in overlays


def test_the_page(both: Path):
    page = (both / "results.html").read_text(encoding="utf-8")
    results = stored(both / "results.json")
    for text in (
        f"mIoU {results['mIoU']:.2f} on val",
        "4 patches; windows of 64x64 px, contrast 50, overlap 0.25, mirrored both ways",
        "Means over classes leave out: road. OA, fwIoU and kappa count all pixels.",
        "Confusion of scenes",
        f"{results['scenes']['OA']:.2f}",
    ):
        assert text in page
    assert page.count("data:image/webp;base64,") == 4
    recall = f">{results['recall/roof']:.2f}</td>"
    assert page.count(recall) >= 2, "of the class, and as the mean of those that aren't left out"
    assert page.count('<tr class="excluded">') == 2


def test_scores_of_whole_scenes_alone(both: Path, checkpoints: list[Path], tmp_path: Path):
    results = evaluated(tmp_path, f"checkpoint={checkpoints[0]}", "score=scenes", *VIEWS[1:])
    scenes = stored(both / "results.json")["scenes"]
    assert {key: results[key] for key in scenes} == scenes
    assert "scenes" not in results
    assert (tmp_path / "images.csv").read_bytes() == (both / "scenes" / "images.csv").read_bytes()


def test_one_window_over_the_image_equals_the_default(checkpoints: list[Path], tmp_path: Path):
    default = evaluated(tmp_path / "0", f"checkpoint={checkpoints[0]}")
    assert (default["eval_size"], default["score"]) == ("whole", "patches")
    for place, options in enumerate((["eval_size=64"], ["eval_size=64", "overlap=0.5"], ["eval_size=whole"]), 1):
        found = evaluated(tmp_path / str(place), f"checkpoint={checkpoints[0]}", *options)
        assert found["confusion"] == default["confusion"]
    flipped = evaluated(tmp_path / "9", f"checkpoint={checkpoints[0]}", "flips=h", "scales=[1,1.5]")
    assert flipped["confusion"] != default["confusion"]


def test_several_checkpoints_over_two_ranks(both: Path, checkpoints: list[Path], tmp_path: Path):
    given = f"checkpoint=[{','.join(str(path.parent.parent) for path in checkpoints)}]"
    told = finished(start("evaluate.py", given, *VIEWS, "gpus=0", "ranks=2", f"hydra.run.dir={tmp_path}/cmp"))
    folders = [path.parent.parent / "evaluate" / f"cmp-{n}-best" for n, path in enumerate(checkpoints)]
    first, alone = stored(folders[0] / "results.json"), stored(both / "results.json")
    assert first["confusion"] == alone["confusion"]
    assert first["scenes"]["confusion"] == alone["scenes"]["confusion"]
    for name in ("images.csv", "scenes/images.csv", "worst.png", "scenes/best.png"):
        assert (folders[0] / name).read_bytes() == (both / name).read_bytes(), "of all ranks"
    assert not list(folders[0].glob("*.npz"))
    compared = table(tmp_path / "cmp" / "comparison.csv")
    assert sorted(float(row["best mIoU"]) for row in compared) == sorted(
        stored(folder / "results.json")["mIoU"] for folder in folders
    )
    assert "scenes_mIoU" in compared[0]
    page = (tmp_path / "cmp" / "comparison.html").read_text(encoding="utf-8")
    for folder in folders:
        assert f"{stored(folder / 'results.json')['mIoU']:.2f}" in told
        assert folder.parent.parent.name in told and folder.parent.parent.name in page
    assert run_folder([str(path) for path in checkpoints]) == "outputs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["exclude=[water]"], r"^exclude: unknown class 'water'; the classes are roof, road$"),
        (
            ["exclude=[roof,road]"],
            r"^exclude names every class, which leaves nothing to average: keep at least one class$",
        ),
        (["overlap=1"], r"^overlap=1: expected a number of at least 0 and below 1$"),
        (["overlap=0.5"], r"^overlap=0.5 needs windows, but whole images are predicted: set eval_size=<pixels> or"),
        (["overlap=0.5", "eval_size=whole"], r"^overlap=0.5 needs windows"),
        (["scales=[1,0]"], r"^scales=\[1,0\]: expected one or more numbers above 0"),
        (["scales=[]"], r"^scales=\[\]: expected one or more numbers above 0"),
        (["flips=x"], r"^flips=x: expected none \| h \| v \| hv \| d4"),
        (["score=all"], r"^score=all: expected patches \| scenes \| both"),
        (["eval_size=32"], r"^eval_size=32 is too small for .*best.safetensors, whose network takes 64 px a side at "),
        (
            ["eval_size=[64,96]", "scales=[0.5,1]"],
            r"^eval_size=\[64,96\] at scale 0.5 .*: set eval_size=128 or larger",
        ),
        (["checkpoint=[]"], r"^checkpoint=\[\] is empty: give run folders or .safetensors files$"),
        (["checkpoint=[x,y]"], r"^checkpoint=x does not exist"),
    ],
)
def test_settings_that_do_not_fit(options: list[str], message: str, checkpoints: list[Path]):
    with pytest.raises(ConfigError, match=message):
        check(compose("evaluate", [f"checkpoint={checkpoints[0]}", "gpus=0", *options]))


def test_windows_may_be_small_where_scales_are_large(checkpoints: list[Path]):
    given = [f"checkpoint={checkpoints[0]}", "gpus=0", "eval_size=48", "scales=[1.5,2]"]
    assert check(compose("evaluate", given)).dump()["eval_size"] == [48, 48]


def test_checkpoints_that_cannot_be_compared(checkpoints: list[Path], tmp_path: Path):
    weights, meta = load_checkpoint(checkpoints[0])
    meta["config"]["dataset"]["classes"].append({"name": "water", "color": "0000FF"})
    save_checkpoint(tmp_path / "three.safetensors", weights, meta)
    given = f"checkpoint=[{checkpoints[0]},{tmp_path}/three.safetensors]"
    with pytest.raises(
        ConfigError, match=r"best.safetensors has 2 classes \(roof, road\), .*three.safetensors has 3 \("
    ):
        check(compose("evaluate", [given, "gpus=0"]))
    (tmp_path / "torn.safetensors").write_bytes(checkpoints[1].read_bytes()[:999])
    with pytest.raises(CheckpointError, match=r"torn.safetensors is not a complete safetensors file"):
        check(compose("evaluate", [f"checkpoint=[{checkpoints[0]},{tmp_path}/torn.safetensors]", "gpus=0"]))


def test_a_checkpoint_that_names_foreign_code_needs_trust(checkpoints: list[Path], tmp_path: Path):
    weights, meta = load_checkpoint(checkpoints[0])
    meta["config"]["model"]["backbone"]["_target_"] = "subprocess.run"
    save_checkpoint(tmp_path / "best.safetensors", weights, meta)
    given = [f"checkpoint={tmp_path}/best.safetensors", "gpus=0"]
    with pytest.raises(CheckpointError, match=r"best.safetensors names subprocess.run, .*nothing was executed"):
        check(compose("evaluate", given))
    assert check(compose("evaluate", [*given, "trust=true"])).dump()["trust"]


def test_images_without_an_index_are_no_scenes(checkpoints: list[Path], town: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(town / "val")
    with pytest.raises(DataError, match=r"has no index.json: prepare them, or use score=patches"):
        evaluated(tmp_path, f"checkpoint={checkpoints[0]}", "score=scenes", f"dataset.root={tmp_path}/data")


@pytest.mark.system("chromium")
def test_the_page_in_chromium(both: Path, tmp_path: Path):
    browser = Browser(tmp_path)
    try:
        for width, dark in ((1300, False), (1300, True), (375, False)):
            browser.open(both / "results.html", width=width, dark=dark, mobile=width < 600)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("window.innerWidth") == width
        browser.run("document.querySelectorAll('.runs th button')[1].click()")
        column = "[...document.querySelectorAll('.runs')][0].tBodies[0].rows"
        values = browser.run(f"[...{column}].map(row => Number(row.cells[1].dataset.v))")
        assert values == sorted(values)
        assert browser.problems == []
    finally:
        browser.close()
