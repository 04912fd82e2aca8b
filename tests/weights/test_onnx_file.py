"""ONNX files that pfseg did not write, or that are damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from pfseg.errors import CheckpointError, ConfigError
from pfseg.inference.onnx_network import OnnxNetwork
from pfseg.weights.checkpoint import load_meta
from pfseg.weights.onnx_file import NEEDED, read_onnx

ENTRIES: dict[str, Any] = {
    "bands": None,
    "stretch": None,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "classes": [{"name": "a"}, {"name": "b"}],
    "pfseg": {"config": {"dataset": {}}},
}


def make(
    path: Path, *, shape: tuple[int, ...] = (1, 3, 8, 8), opset: int = 17, op: str = "Softmax", **changes: Any
) -> Path:
    """Write a file of one softmax over two of three channels; None leaves an entry out."""
    out = (*shape[:1], 2, *shape[2:])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [0, 2])
    nodes = [helper.make_node("Split", ["x", "axes2"], ["a", "b"], axis=1), helper.make_node(op, ["a"], ["y"])]
    sizes = helper.make_tensor("axes2", TensorProto.INT64, [2], [2, shape[1] - 2])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [axes, sizes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    entries = ENTRIES | changes
    helper.set_model_props(model, {key: json.dumps(value) for key, value in entries.items() if value != "left out"})
    onnx.save(model, path)
    return path


def test_what_a_file_says(tmp_path: Path):
    file = read_onnx(make(tmp_path / "m.onnx"))
    assert (file.size, file.batch, file.num_classes, file.opset) == (8, 1, 2, 17)
    assert (file.mean, file.std) == ((0.5,) * 3, (0.25,) * 3)
    assert load_meta(tmp_path / "m.onnx") == ENTRIES["pfseg"]


@pytest.mark.parametrize("keys", [["bands"], ["mean", "classes"], NEEDED], ids=["one", "two", "all"])
def test_metadata_that_is_missing_is_named(keys: list[str], tmp_path: Path):
    path = make(tmp_path / "m.onnx", **dict.fromkeys(keys, "left out"))
    with pytest.raises(CheckpointError, match=rf"m.onnx lacks {', '.join(keys)} in its metadata, without which no"):
        load_meta(path)


@pytest.mark.parametrize(
    "changes", [{"pfseg": 3}, {"mean": [0.5]}, {"mean": 3}, {"std": ["a"] * 3}], ids=["type", "count", "one", "text"]
)
def test_damaged_metadata(changes: dict[str, Any], tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"m.onnx has damaged metadata \(.*\); "):
        load_meta(make(tmp_path / "m.onnx", **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": (1, 3, 8, 9)}, r"an input of \(1, 3, 8, 9\) and an output of \(1, 2, 8, 9\)"),
        ({"shape": (1, 4, 8, 8)}, r"an input of \(1, 4, 8, 8\)"),
        ({"classes": [{"name": "a"}]}, r"expected one square image \(N, C, S, S\) and its probabilities"),
    ],
)
def test_another_input_or_output(changes: dict[str, Any], text: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=text):
        read_onnx(make(tmp_path / "m.onnx", **changes))


def test_several_inputs(tmp_path: Path):
    model = onnx.load(make(tmp_path / "m.onnx"))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m.onnx has 2 inputs and 1 outputs, expected one square image"):
        read_onnx(tmp_path / "m.onnx")


def test_files_that_are_damaged_or_gone(tmp_path: Path):
    path = make(tmp_path / "m.onnx")
    content = path.read_bytes()
    for part in (content[: len(content) // 2], b"no ONNX at all", b""):
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"m.onnx is not a complete ONNX file \(.*\); export the checkpoint"):
            read_onnx(path)
    with pytest.raises(CheckpointError, match=r"checkpoint .*gone.onnx does not exist"):
        read_onnx(tmp_path / "gone.onnx")


def test_operators_that_this_onnx_runtime_does_not_know(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"can't run .*m.onnx, which uses opset 99 \(.*\): export the checkpoint"):
        OnnxNetwork(make(tmp_path / "m.onnx", opset=99))
    with pytest.raises(CheckpointError, match=r"can't run .*m.onnx, which uses opset 17 \(.*Unheard"):
        OnnxNetwork(make(tmp_path / "m.onnx", op="Unheard"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_packages_that_are_not_installed(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"m.onnx needs the package {package}: run `pip install 'pfseg\[onnx\]'"):
        OnnxNetwork(path)
