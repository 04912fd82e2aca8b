"""What weights files hold: networks are recognised, and each weight named as in the network that is the same."""

from __future__ import annotations

import re
from pathlib import Path

import golden
import numpy as np
import pytest
from runs import command
from safetensors.numpy import save_file

from pfseg.build import restore_model
from pfseg.config.stored import training_settings
from pfseg.errors import CheckpointError
from pfseg.weights.contents import recognise
from pfseg.weights.transfer import export_weights

_STEM = [(r"layer0\.0\.(?=\d)", "backbone.stem."), (r"layer0\.1\.", "backbone.stem.7.")]
_PLAIN = [(r"layer0\.0\.", "en.resnet.conv1."), (r"layer0\.1\.", "en.resnet.bn1."), (r"layer", "en.resnet.layer")]
_MMSEG = [
    (r"head\.", "decode_head."),
    (r"aux\.", "auxiliary_head."),
    (r"(?=layer|patch|block|norm|stage|down)", "backbone."),
]
_PSP = [
    (r"head\.ppm\.features\.(\d)\.1\.", r"decode_head.psp_modules.\1.1.conv."),
    (r"head\.ppm\.features\.(\d)\.2\.", r"decode_head.psp_modules.\1.1.bn."),
    *[(rf"head\.cls\.{i}\.", f"decode_head.{name}.") for i, name in enumerate(("bottleneck.conv", "bottleneck.bn"))],
    (r"head\.cls\.4\.", "decode_head.conv_seg."),
    *[(rf"aux\.{i}\.", f"auxiliary_head.convs.0.{name}.") for i, name in enumerate(("conv", "bn"))],
    (r"aux\.4\.", "auxiliary_head.conv_seg."),
]
_CONTRACTED = {"backbone.stem": "v1c", "backbone.dilation": "contracted"}
# choice of model -> stored names of its weights, settings beside it, how the other project names its weights
CASES: dict[str, tuple[str, dict[str, object], list[tuple[str, str]]]] = {
    "pspnet_r50": ("baselines/pspnet_r50", {"align_corners": False, **_CONTRACTED}, [*_STEM, *_PSP, *_MMSEG]),
    "deeplabv3plus_r50": ("baselines/deeplabv3plus_r50", _CONTRACTED, [*_STEM, *_MMSEG]),
    "ccnet_r50": (
        "baselines/ccnet_r50",
        _CONTRACTED,
        [*_STEM, (r"head\.cca\.gamma", "decode_head.cca.gamma.scale"), *_MMSEG],
    ),
    "uperhead_convnext_t": ("convnext_t_upernet", {}, _MMSEG),
    "segnext_t": ("segnext_t", {}, [(r"(block.*mlp\.dwconv)\.dwconv\.", r"backbone.\1."), *_MMSEG]),
    "farseg_r50": ("baselines/farseg_r50", {"backbone.stem": "plain"}, [*_PLAIN, (r"head\.", "")]),
}


def theirs(key: str, names: list[tuple[str, str]]) -> str:
    """The other project's name of a weight."""
    pattern, name = next(pair for pair in names if re.match(pair[0], key))
    return re.sub(rf"^{pattern}", name, key)


@pytest.mark.parametrize("model", CASES)
def test_names_of_all_weights(model: str) -> None:
    file, settings, names = CASES[model]
    shapes = golden.shapes(file)
    if settings.get("backbone.stem") == "plain":
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("layer0.0.")}
        shapes["layer0.0.weight"] = [64, 3, 7, 7]
    weights = {theirs(key, names): np.zeros(shape, np.float32) for key, shape in shapes.items()}
    foreign = recognise(weights)
    assert (foreign.model, foreign.num_classes, foreign.is_pfnet) == (model, 16, False)
    assert foreign.settings == settings
    assert {foreign.rename(key): list(array.shape) for key, array in weights.items()} == shapes


def test_what_is_not_recognised() -> None:
    assert recognise({"layer1.0.conv1.weight": np.zeros((1, 1, 1, 1))}).num_classes is None
    head = {name: np.zeros((16, 4, 1, 1)) for name in ("decode_head.conv_seg.weight", "sr.scene_encoder.0.0.weight")}
    with pytest.raises(
        CheckpointError, match=r"FarSeg with a backbone that pfseg lacks, or builds otherwise .as ResNet"
    ):
        recognise(head | {"en.resnet.conv1.weight": np.zeros((64, 3, 7, 7))})


@pytest.mark.slow
def test_a_checkpoint_of_segnext_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {key: golden.weight(key, tuple(shape)) for key, shape in golden.shapes("segnext_t").items()}
    names = CASES["segnext_t"][2]
    save_file({theirs(key, names): value for key, value in state.items()}, tmp_path / "segnext.pkl")
    assert command("convert", str(tmp_path / "segnext.pkl"), "to=safetensors", "dataset=isaid") == 0
    assert "model=segnext_t" in capsys.readouterr().out
    path = tmp_path / "segnext.safetensors"
    settings = training_settings(path, trust=True)
    restored, _ = restore_model(path, settings)
    for key, value in export_weights(restored).items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)
