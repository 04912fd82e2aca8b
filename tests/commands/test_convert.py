from __future__ import annotations

import os
import pickle
import pickletools
import re
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from data.published import isaid
from runs import ROOT, command, rows, run_worker, stored
from safetensors.numpy import save_file
from weight_files import add_names, jittor_file, tensor, torch_stream, torch_zip

from pfseg.build import build_model
from pfseg.build_data import build_dataset
from pfseg.config.check import check, checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.config.stored import training_settings
from pfseg.errors import ConfigError
from pfseg.metrics.confusion import confusion_matrix
from pfseg.weights.checkpoint import load_checkpoint, save_checkpoint
from pfseg.weights.contents import recognise
from pfseg.weights.reading import read_weights

SMALL = {  # names and shapes that tell as much as a whole network's
    "layer0.0.0.weight": (64, 3, 3, 3),
    **{f"layer{i}.{j}.conv3.weight": (8, 4, 1, 1) for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)},
    "layer1.0.bn1.running_mean": (4,),
    "head.fpn_out_align.0.down_h.weight": (64, 256, 1, 1),
    "head.conv_last.1.weight": (16, 256, 1, 1),
    "head.conv_last.1.bias": (16,),
}
OPTIONS = ["to=safetensors", "variant=pytorch", "dataset=isaid"]


@pytest.fixture
def small() -> dict[str, np.ndarray]:
    return {name: golden.weight(name, shape) for name, shape in SMALL.items()}


def official(form: str, weights: dict[str, np.ndarray]) -> bytes:
    """A file as the published projects save them: `zip` and `legacy` by PyTorch, `jittor`."""
    if form == "jittor":
        return jittor_file({"state_dict": weights, "epoch": 3})
    with pytest.MonkeyPatch.context() as patch:
        add_names(patch)
        state = OrderedDict((f"module.{name}", tensor(array)) for name, array in weights.items())
        state["module.layer0.0.1.num_batches_tracked"] = tensor(1000, "Long")
        optimizer = {"state": {0: {"momentum_buffer": tensor(np.ones(3))}}, "param_groups": [{"lr": 0.01}]}
        root = {"state_dict": state, "optimizer": optimizer, "epoch": 15, "mean_iu": np.float64(0.6), "command": "x"}
        return {"zip": torch_zip, "legacy": torch_stream}[form](root)


def convert(path: Path, content: bytes, *options: str) -> int:
    path.write_bytes(content)
    return command("convert", str(path), *options)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- what a file holds


@pytest.mark.parametrize(
    ("name", "model"),
    [("pfnet_r50", "pfnet_r50"), ("pfnet_r101", "pfnet_r101"), ("pfnet_r2n101", "pfnet_r2n101")],
)
def test_published_networks_are_identified(name: str, model: str):
    shapes = golden.shapes(name)
    contents = recognise({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    classes = shapes["head.conv_last.1.weight"][0]
    assert (contents.model, contents.num_classes) == (model, classes) and contents.is_pfnet
    assert contents.settings == {"fpn_dim": 256, "match_dim": 64}


def blocks(names: str, counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    found = [f"layer{i}.{j}.{name}.weight" for i, n in enumerate(counts, 1) for j in range(n) for name in names.split()]
    return dict.fromkeys(found, np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("stem", "names", "counts", "model"),
    [
        ("conv1.0.weight", "conv1 conv2", (2, 2, 2, 2), "pfnet_r18"),
        ("conv1.0.weight", "conv1 conv2 conv3", (3, 4, 23, 3), "pfnet_r101"),
        ("conv1.weight", "conv1 convs.0 conv3", (3, 4, 23, 3), "pfnet_r2n101"),
        ("conv1.weight", "conv1 conv2 conv3", (3, 4, 6, 3), None),  # torchvision's ResNet-50: another stem
        ("conv1.0.weight", "conv1 conv2", (3, 4, 6, 3), None),  # ResNet-34
        ("features.0.weight", "", (1, 1, 1, 1), None),
    ],
)
def test_backbones_are_identified(stem: str, names: str, counts: tuple[int, ...], model: str | None):
    contents = recognise(blocks(names, counts) | {stem: np.zeros(1, np.float32)})
    assert (contents.model, contents.num_classes) == (model, None)


def test_shown_without_writing(small, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(tmp_path / "r50.pth", official("zip", small)) == 0
    told = capsys.readouterr().out
    for text in (
        "PFNet on ResNet-50, deep stem",
        "model=pfnet_r50 model.fpn_dim=256 model.match_dim=64",
        "16",
        "data set",
    ):
        assert text in told
    assert f"{len(small)}, of them 1 running statistics" in told
    assert f"{sum(a.size for a in small.values()) - 4:,} (" in told
    assert [path.name for path in tmp_path.iterdir()] == ["r50.pth"]


def test_our_own_checkpoints_say_more(small, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = {"model": {"variant": "jittor", "edge_pool": 9}, "dataset": {"name": "isaid"}}
    path = tmp_path / "best.safetensors"
    arrays = small | {"optimizer/values/x": np.ones(3, np.float32)}
    save_checkpoint(path, arrays, {"config": config, "progress": {"step": 77}})
    assert command("convert", str(path)) == 0
    told = capsys.readouterr().out
    for text in ("variant=jittor, edge_pool=9", "isaid", "77"):
        assert text in told
    assert command("convert", str(path), *OPTIONS, f"out={tmp_path}/x.safetensors") == 1
    assert "best.safetensors is a checkpoint of pfseg already: pfseg evaluate takes it" in capsys.readouterr().err
    assert command("convert", str(path), "to=pth") == 0
    same(read_weights(tmp_path / "best.pth"), small)


# --- to PyTorch


@pytest.mark.parametrize("form", ["zip", "legacy", "jittor"])
def test_every_form_becomes_the_same_pth(form: str, small, tmp_path: Path):
    assert convert(tmp_path / "given.bin", official(form, small), "to=pth") == 0
    same(read_weights(tmp_path / "given.pth"), small)
    with zipfile.ZipFile(tmp_path / "given.pth") as archive:
        assert archive.testzip() is None
        text = archive.read("archive/data.pkl")
    names = {name for code, name, _ in pickletools.genops(text) if code.name == "GLOBAL"}
    assert names == {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}


def test_types_views_and_alignment_of_a_pth(tmp_path: Path):
    values = np.arange(24).reshape(2, 3, 4)
    arrays = {kind: values.astype(kind) for kind in ("u1", "i1", "i2", "i4", "i8", "f4", "f8", "?")}
    arrays |= {"scalar": np.array(3, np.float32), "empty": np.zeros((0, 3), np.float32)}
    save_file(arrays, tmp_path / "all.safetensors")
    assert command("convert", str(tmp_path / "all.safetensors"), "to=pth") == 0
    same(read_weights(tmp_path / "all.pth"), arrays)
    data = (tmp_path / "all.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "all.pth") as archive:
        for entry in archive.infolist():
            if entry.filename.startswith("archive/data/"):
                head = data[entry.header_offset : entry.header_offset + 30]
                start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little")
                assert (start + int.from_bytes(head[28:30], "little")) % 64 == 0


def test_types_that_pytorch_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_file({"a": np.ones(2, np.uint16)}, tmp_path / "a.safetensors")
    assert command("convert", str(tmp_path / "a.safetensors"), "to=pth") == 1
    assert "a is of type uint16, which PyTorch lacks; expected bool, " in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


# --- refusals


class Touch:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "jittor"])
def test_a_file_that_wants_to_run_something_is_refused(form: str, tmp_path: Path, capsys):
    mark = tmp_path / "executed"
    if form == "jittor":
        content = jittor_file({"state_dict": {"a": np.ones(2)}, "extra": Touch(mark)})
    else:
        content = {"zip": torch_zip, "legacy": torch_stream}[form]({"state_dict": {}, "extra": Touch(mark)})
    assert convert(tmp_path / "bad.pth", content, "to=pth", f"out={tmp_path}/o.pth") == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"error: weights file {tmp_path}/bad.pth asks for `posix.system`")
    assert "rejected, nothing was executed" in told.err and told.err.count("\n") == 1 and not told.out
    assert not mark.exists() and not (tmp_path / "o.pth").exists()
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists(), "otherwise the file above would have been harmless"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["to=safetensors", "dataset=isaid"], "variant is not given, and the file can't tell: the two families"),
        (["to=safetensors", "variant=jittor"], "dataset is not given, .* whose 16 classes .* dataset=isaid"),
        ([*OPTIONS[:2], "dataset=potsdam"], "r50.pth has 16 classes, dataset=potsdam has 6: name the data set that"),
        ([*OPTIONS[:2], "dataset=isad"], "unknown choice `dataset=isad`: did you mean `dataset=isaid`"),
        ([*OPTIONS, "dataset.evalsize=9"], "unknown key `dataset.evalsize`: did you mean `dataset.eval_size`"),
        (["out=x.pth"], "out says where to write, but not what: add to=safetensors or to=pth"),
        (["variant=jittor"], "variant and dataset go with to=safetensors only"),
        (["to=pth", "dataset=isaid"], "variant and dataset go with to=safetensors only: leave them out"),
        (["to=pth", "out=x.bin"], r"out=x.bin must end in \.pth, by which the file is recognised"),
        (["to=pth"], r"r50.pth exists already: give another file by out="),
        (["--to", "pth"], "unrecognized arguments: --to pth: settings are given as key=value, without dashes"),
    ],
)
def test_options_that_do_not_fit(options, said, small, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(tmp_path / "r50.pth", official("zip", small), *options) == 2
    told = capsys.readouterr().err
    assert re.match(f"error: .*{said}", told) and told.count("\n") == 1, told
    assert [path.name for path in tmp_path.iterdir()] == ["r50.pth"]


def test_a_backbone_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_file(blocks("conv1 conv2", (2, 2, 2, 2)), tmp_path / "r18.anything")
    assert command("convert", str(tmp_path / "r18.anything"), *OPTIONS) == 1
    told = capsys.readouterr()
    assert "none: a backbone alone goes to model.pretrained" in told.out
    assert "r18.anything holds no whole PFNet on one of its backbones" in told.err


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2**19, np.float32)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        assert command("convert", str(path), "to=pth") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path}/a.pth can't be written (File too large); free some space" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_as_a_command_without_jittor(tmp_path: Path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    code = """if True:
        import sys
        from pfseg.commands import app
        code = app.run("convert", sys.argv[1:])
        sys.exit(code or 9 * ("jittor" in sys.modules))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "a.safetensors"), "to=pth"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"written: {tmp_path}/a.pth" in done.stdout


# --- to a checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "variant", "file", "size"),
    [("zip", "pytorch", "pfnet_r50_256", 256), ("jittor", "jittor", "pfnet_r50_jittorpool_512", 512)],
)
def test_published_weights_give_the_published_logits(form, variant, file, size, tmp_path: Path):
    from pfseg.runtime import jt
    from pfseg.weights.transfer import load_weights

    weights = {name: golden.weight(name, tuple(shape)) for name, shape in golden.shapes("pfnet_r50").items()}
    options = [OPTIONS[0], OPTIONS[2], f"variant={variant}", f"out={tmp_path}/out.safetensors"]
    assert convert(tmp_path / "published.bin", official(form, weights), *options) == 0
    arrays, meta = load_checkpoint(tmp_path / "out.safetensors")
    same(arrays, weights)
    model = meta["config"]["model"]
    assert (model["variant"], model["num_classes"], model["backbone"]["depth"]) == (variant, 16, 50)
    network = build_model(training_settings(tmp_path / "out.safetensors").model, 16)
    load_weights(network, arrays, "out")
    network.eval()
    expected = golden.load(file)
    image = np.random.default_rng(int(expected["input_seed"])).standard_normal((1, 3, size, size)).astype(np.float32)
    with jt.no_grad():
        logits = network.predict(jt.array(image)).numpy()
    assert golden.difference(logits[..., ::16, ::16], expected["logits"]) < 1e-3
    check_evaluation(tmp_path, network, size)


def check_evaluation(folder: Path, network: Any, size: int) -> None:
    """evaluate.py scores a converted checkpoint as its network's own logits do."""
    from pfseg.runtime import jt

    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    isaid(folder / "data", masks_in="masks", size=(size, size))
    settings = [f"checkpoint={folder}/out.safetensors", f"dataset.root={folder}/data", "gpus=0", "ranks=1"]
    run_worker(check(compose("evaluate", settings)).dump(), folder / "scores", lambda: False)
    data = training_settings(folder / "out.safetensors", {"root": str(folder / "data")}).dataset
    dataset = build_dataset(data, "val")
    sample = dataset.read(0)
    with jt.no_grad():
        image = ((sample.image / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
        pred = network.predict(jt.array(image)).numpy()[0].argmax(0)
    expected = confusion_matrix(pred, sample.mask, 16)
    found = np.array(stored(folder / "scores" / "results.json")["confusion"])
    assert found.sum() == expected.sum() == size * size
    assert np.abs(found - expected).sum() <= size  # normalised by another formula: a few close calls


def test_converted_and_evaluated(tmp_path: Path):
    from pfseg.weights.transfer import export_weights

    settings = ["model=pfnet_r18", "model.fpn_dim=32", "model.match_dim=16", "gpus=0", "ranks=1", "logger=none"]
    network = build_model(checked(compose("train", settings), Train).model, 6)
    weights = export_weights(network)
    scenes = ["dataset.size=64", "dataset.val_images=2", "dataset=synthetic"]
    options = ["to=safetensors", "variant=pytorch", *scenes]
    assert convert(tmp_path / "r18.pth", official("legacy", weights), *options) == 0
    path = tmp_path / "r18.safetensors"
    same(load_checkpoint(path)[0], weights)
    config = check(compose("evaluate", [f"checkpoint={path}", "gpus=0", "ranks=1", "boundary=true"]))
    run_worker(config.dump(), tmp_path / "scores", lambda: False)
    results = stored(tmp_path / "scores" / "results.json")
    assert (results["images"], results["step"], len(results["classes"])) == (2, 0, 6)
    (row,) = rows(tmp_path / "scores", "val")
    for key in ("boundary_F@0.0005", "boundary_F@0.001875", "boundary_F@0.00375", "boundary_F@0.005", "boundary_IoU"):
        known = [v for name in results["classes"] if (v := results[f"{key}/{name}"]) is not None]
        assert results[key] == row[f"val/{key}"] == pytest.approx(np.mean(known))


def test_the_checkpoint_knows_no_place_of_the_data(tmp_path: Path):
    config = checked(compose("train", ["dataset=isaid", f"dataset.root={tmp_path}", "gpus=0", "ranks=1"]), Train)
    for source in ("patches", "scenes"):
        with pytest.raises(ConfigError, match=r"dataset\.root is null, but FolderDataset needs it: add dataset\.root="):
            build_dataset(config.dataset.model_copy(update={"root": None, "source": source}), "val")


def test_a_data_set_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "conf" / "dataset"
    folder.mkdir(parents=True)
    table = "classes: [{name: soil, color: A07850}, {name: tree, color: 14783C}]"
    (folder / "orchard.yaml").write_text(f"defaults: [folder, _self_]\nname: orchard\n{table}\n")
    weights = {name: golden.weight(name, shape) for name, shape in SMALL.items()}
    options = ["to=safetensors", "variant=pytorch", "dataset=orchard", "--config-dir", str(tmp_path / "conf")]
    assert convert(tmp_path / "r50.pth", official("zip", weights), *options) == 2
    assert "r50.pth has 16 classes, dataset=orchard has 2" in capsys.readouterr().err


def test_a_network_that_lacks_weights(small, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert convert(tmp_path / "r50.pth", official("zip", small), *OPTIONS) == 1
    told = capsys.readouterr().err
    assert "r50.pth doesn't fit model=pfnet_r50: loaded 4 of the network's" in told
    assert "missing in the file (layer0.0.1.weight, " in told and told.count("\n") == 1
    assert not (tmp_path / "r50.safetensors").exists()
