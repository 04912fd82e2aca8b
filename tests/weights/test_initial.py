"""A training that starts from the weights of a whole network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import rows, worked
from safetensors.numpy import save_file

from pfseg.build import build_model
from pfseg.config.check import checked
from pfseg.config.compose import compose
from pfseg.config.schema import Train
from pfseg.errors import CheckpointError
from pfseg.weights.checkpoint import load_checkpoint, save_checkpoint
from pfseg.weights.initial import load_network
from pfseg.weights.transfer import export_weights

SMALL = ["model.fpn_dim=32", "model.match_dim=16"]


def network(num_classes: int, *overrides: str) -> Any:
    settings = checked(compose("train", [*SMALL, "gpus=0", "ranks=1", *overrides]), Train)
    return build_model(settings.model, num_classes)


def test_another_class_count_leaves_the_classifier(tmp_path: Path):
    theirs, ours = network(3), network(5)
    save_file(export_weights(theirs), tmp_path / "weights.safetensors")
    before, given = export_weights(ours), export_weights(theirs)
    report = load_network(ours, tmp_path / "weights.safetensors")
    after = export_weights(ours)
    left = ["head.conv_last.1.bias", "head.conv_last.1.weight"]
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key] if key in left else given[key], err_msg=key)
    total = len(after)
    assert report.startswith(f"started from {tmp_path}/weights.safetensors: {total - 2} of {total} weights; left at")
    assert report.endswith(f"of 5 classes: {', '.join(left)}")


def test_the_same_class_count_takes_all(tmp_path: Path):
    theirs, ours = network(5), network(5)
    save_file(export_weights(theirs), tmp_path / "weights.safetensors")
    assert "left" not in load_network(ours, tmp_path / "weights.safetensors")
    given = export_weights(theirs)
    for key, value in export_weights(ours).items():
        np.testing.assert_array_equal(value, given[key])


def test_other_networks_are_refused_and_nothing_is_changed(tmp_path: Path):
    ours = network(5)
    before = export_weights(ours)
    path = tmp_path / "weights.safetensors"
    other = before | {"head.conv_last.0.0.weight": np.zeros((5, 9, 3, 3), np.float32)}
    backbone = {key: value for key, value in before.items() if not key.startswith("head.")}
    for arrays, said in ((other, "1 of another shape, not loaded"), (backbone, "missing in the file .head")):
        save_file(arrays, path)
        with pytest.raises(CheckpointError, match=rf"weights.safetensors holds another network: .*{said}.*pretrained"):
            load_network(ours, path)
    save_checkpoint(path, before, {"config": {"model": {"variant": "jittor"}}})
    said = r"trained with model\.variant=jittor, this run has pytorch, .*; set model\.variant=jittor"
    with pytest.raises(CheckpointError, match=said):
        load_network(ours, path)
    after = export_weights(ours)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.mark.slow
def test_a_run_starts_from_another_runs_checkpoint(tmp_path: Path):
    worked(tmp_path / "first", "trainer.max_steps=1")
    best = tmp_path / "first" / "checkpoints" / "best.safetensors"
    slow = ["optimizer=sgd", "optimizer.lr=1e-12", "trainer.max_steps=1", "trainer.freeze_bn=true", "loss=ce"]
    worked(tmp_path / "second", f"model.init={best}", *slow)
    assert f"started from {best}: " in rows(tmp_path / "second", "message")[0]["text"]
    first, second = (load_checkpoint(path)[0] for path in (best, tmp_path / "second/checkpoints/last.safetensors"))
    for key in second:
        if not key.startswith(("optimizer/", "train/")):
            np.testing.assert_allclose(second[key], first[key], atol=1e-6, err_msg=key)
