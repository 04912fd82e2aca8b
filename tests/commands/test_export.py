"""`pfseg export`, and prediction from what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import rasterio
import yaml
from data.fakes import write
from exported import CLASSES, export, make_checkpoint
from rasterio.transform import from_origin
from runs import ROOT

from pfseg import create_model
from pfseg.commands.export import run
from pfseg.commands.predict import run as run_predict
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.errors import CheckpointError, ConfigError
from pfseg.export.comparison import Agreement
from pfseg.export.folder import WEIGHTS
from pfseg.weights.checkpoint import load_meta
from pfseg.weights.transfer import export_weights

UTM = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.safetensors")


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint.parent.parent, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A GeoTIFF of 16 bits, larger than a window and with pixels without data, and a small picture."""
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(1, 4000, (12, 16, 3), np.uint16), (200, 150), interpolation=cv2.INTER_CUBIC)
    scene[:40, 120:] = 0
    profile = {"height": 150, "width": 200, "count": 3, "dtype": "uint16", "nodata": 0}
    (tmp_path / "in").mkdir()
    with rasterio.open(tmp_path / "in" / "scene.tif", "w", "GTiff", **profile, **UTM) as file:
        file.write(scene.transpose(2, 0, 1))
    write(tmp_path / "in" / "picture.png", rng.integers(0, 256, (50, 70, 3), np.uint8))
    return tmp_path / "in"


def predicted(checkpoint: Path, images: Path, out: Path, *overrides: str) -> Path:
    run_predict(check(compose("predict", [f"checkpoint={checkpoint}", f"input={images}", f"output={out}", *overrides])))
    return out


def entries(path: Path) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def test_the_file_describes_itself(model: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    found = entries(model)
    assert found["model_type"] == "Segmentor" and found["tile_size"] == 96 and found["tiles_overlap"] == 25
    assert found["class_names"] == {"0": "roof", "1": "road", "2": "tree"}
    assert (found["bands"], found["stretch"], found["variant"]) == ([2, 1, 0], [2, 98], "pytorch")
    assert found["mean"] == [0.485, 0.456, 0.406] and len(found["std"]) == 3 and "resolution" not in found
    assert found["classes"] == [{"id": None} | row for row in CLASSES]
    assert found["checkpoint"]["file"] == "best.safetensors" and len(found["checkpoint"]["sha256"]) == 64
    assert found["pfseg"]["config"]["model"]["name"] == "pfnet_r18"
    export(checkpoint, model.with_name("other.onnx"), "size=64", "dynamic_batch=true", "ground_resolution=0.3")
    other = onnx.load(model.with_name("other.onnx"))
    sides = other.graph.input[0].type.tensor_type.shape.dim
    assert (sides[0].dim_param, sides[2].dim_value) == ("batch", 64)
    assert entries(model.with_name("other.onnx"))["resolution"] == 30
    told = capsys.readouterr().out
    assert "any number of images, 3 x 64 x 64" in told and "same class at 100.000 % of the pixels" in told


def test_maps_are_those_of_the_checkpoint(model: Path, checkpoint: Path, images: Path, tmp_path: Path):
    options = ["outputs=[classes,probabilities]", "flips=d4", "overlap=0.5", "batch_size=2"]
    first = predicted(checkpoint, images, tmp_path / "jittor", *options)
    second = predicted(model, images, tmp_path / "onnx", *options)
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()} and len(names) == 5
    with rasterio.open(first / "scene.tif") as one, rasterio.open(second / "scene.tif") as two:
        assert (two.crs.to_string(), two.transform, two.nodata) == (UTM["crs"], UTM["transform"], 255)
        labels = one.read(1)
        assert (labels == two.read(1)).mean() > 0.999 and set(np.unique(labels)) == {0, 1, 7, 255}
        assert one.colormap(1) == two.colormap(1)
    with rasterio.open(first / "scene_probs.tif") as one, rasterio.open(second / "scene_probs.tif") as two:
        np.testing.assert_allclose(one.read(), two.read(), atol=2e-3)
    pictures = [cv2.imread(str(out / "picture.png"), cv2.IMREAD_UNCHANGED) for out in (first, second)]
    assert (pictures[0] == pictures[1]).mean() > 0.999


def test_prediction_needs_neither_jittor_nor_a_compiler(model: Path, images: Path, tmp_path: Path):
    arguments = [f"checkpoint={model}", f"input={images}", f"output={tmp_path / 'out'}"]
    program = (
        "import shutil, sys\nfrom pfseg.commands.app import run\n"
        f"assert shutil.which('g++') is None\ncode = run('predict', {arguments})\n"
        "assert not {'jittor', 'jittor_utils'} & set(sys.modules)\nsys.exit(code)"
    )
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT)])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path, timeout=120)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".pfseg.json", "scene.tif", "picture.png"}


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a run that has drawn samples."""
    samples = checkpoint.parent.parent / "samples"
    samples.mkdir()
    for name in ("step_000003.png", "step_000010.png", "step_000010_0_pred.png"):
        (samples / name).write_bytes(name.encode())
    return export(checkpoint, tmp_path_factory.mktemp("shared") / "model", "format=folder")


def test_a_folder_to_share(folder: Path, checkpoint: Path):
    names = ["README.md", "classes.csv", "config.yaml", "metrics.json", "model.json", "model.onnx", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "picture.png"])
    assert (folder / "picture.png").read_bytes() == b"step_000010.png"
    assert (folder / "classes.csv").read_text().splitlines()[3] == "7,tree,#00a000"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["name"] == "pfnet_r18"
    for meta in (config, entries(folder / "model.onnx")["pfseg"]["config"], load_meta(folder / WEIGHTS)["config"]):
        assert meta["dataset"]["root"] is None, "a path of this machine"
    told = json.loads((folder / "metrics.json").read_text())
    assert told == {"scores": {"mIoU": 41.5, "IoU/roof": 40.25}, "step": 7, "index": None}
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(head)
    assert (described["library_name"], described["pipeline_tag"]) == ("pfseg", "image-segmentation")
    assert described["model-index"][0]["results"][0]["metrics"] == [{"type": "mean_iou", "name": "mIoU", "value": 41.5}]
    assert "| 7 | tree | `#00a000` |" in text and "| IoU of roof | 40.25 |" in text and "](picture.png)" in text
    assert "3 bands (2, 1, 0 of the files, from 0)" in text and "stretched by `[2.0, 98.0]`" in text


def test_a_folder_is_used_by_its_path(folder: Path, checkpoint: Path, images: Path, tmp_path: Path):
    network, trained = create_model(str(folder)), create_model(str(checkpoint))
    weights, expected = export_weights(network), export_weights(trained)
    assert all((weights[key] == value).all() for key, value in expected.items()) and network.num_classes == 3
    first, second = (predicted(each, images, tmp_path / each.name) for each in (folder, checkpoint.parent.parent))
    assert (first / "scene.tif").read_bytes() == (second / "scene.tif").read_bytes()
    with pytest.raises(ConfigError, match=r"create_model\('pfnet_r18'\) needs num_classes: only a trained network"):
        create_model("pfnet_r18")
    with pytest.raises(ConfigError, match=r"model exists already: give another folder by out=<path>"):
        export(checkpoint, folder, "format=folder")


def test_a_folder_is_uploaded_where_asked(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    uploaded = []
    monkeypatch.setattr("pfseg.commands.export.push", lambda *given: uploaded.append(given) or "address")
    export(checkpoint, tmp_path / "model", "format=folder", "push=owner/name")
    assert uploaded == [(tmp_path / "model", "owner/name")]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["out=m.pt"], "out=m.pt must end in .onnx, by which"),
        (["out={model}"], "model.onnx exists already: give another onnx by out=<path>"),
        (["checkpoint={model}", "out=m.onnx"], "model.onnx is an ONNX file already: give the run that it is from"),
        (["out=m.onnx", "checkpoint=gone"], "checkpoint=gone does not exist"),
        (["out=m.onnx", "precision=int8"], "precision=int8 and images go together"),
        (["out=m.onnx", "images=a"], "precision=int8 and images go together"),
        (["out=m.onnx", "push=a/b"], "push=a/b: expected owner/name, and format=folder"),
        (["out=m", "format=folder", "push=a"], "push=a: expected owner/name, and format=folder"),
        (["out=m.onnx", "size=32"], "size=32 is too small for this network: it takes 64 px a side at least"),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], text: str, model: Path, checkpoint: Path):
    given = [f"checkpoint={checkpoint}", *(text.format(model=model) for text in overrides)]
    with pytest.raises(ConfigError, match=text):
        run(check(compose("export", given)))
    assert not Path("m.onnx").exists()


def test_a_network_that_became_another_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pfseg.export.comparison.compare", lambda *_: Agreement(0.5, 0.9))
    with pytest.raises(CheckpointError, match=r"agree on 90.00 % of the pixels of a random image only, so nothing"):
        export(checkpoint, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["window=64", "resize=64", "scales=[0.5,1]"])
def test_another_size_than_the_file_takes(given: str, model: Path, images: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model.onnx takes images of 96x96 px only: leave out scales and"):
        predicted(model, images, tmp_path / "out", given)


def test_onnx_files_run_in_one_rank(model: Path, images: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"ranks=2: .*model.onnx runs in one rank, because ONNX Runtime uses all cores: leave"
    ):
        predicted(model, images, tmp_path / "out", "ranks=2", "gpus=0")
