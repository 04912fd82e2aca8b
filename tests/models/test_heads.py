"""Heads and backbones that fit each other or don't, ResNet's stems and strides, what heads have beside their logits."""

from __future__ import annotations

import numpy as np
import pytest
from building import settings

from pfseg import create_model
from pfseg.build import build_model
from pfseg.config.model_settings import Model
from pfseg.errors import ConfigError
from pfseg.models.resnet import ResNet
from pfseg.models.sfnet import FlowAlign
from pfseg.ops.convolution import Conv2d
from pfseg.runtime import jt


def model(choice: str, *overrides: str) -> Model:
    return settings("model", choice, {}, *overrides).model


@pytest.mark.parametrize("name", ["fpn_r18", "pointrend_r18", "farseg_r18"])
def test_a_backbone_that_cannot_feed_a_head(name: str):
    given = model(name, "model.backbone.output_stride=8", "model.backbone.dilation=full")
    with pytest.raises(ConfigError, match=r"takes maps at strides \(4, 8, 16, 32\), but ResNet gives \(4, 8, 8, 8\)"):
        build_model(given, 3)


def test_an_output_stride_without_dilation():
    with pytest.raises(ValueError, match=r"output_stride=16 takes strides away, .* got none \(config: model.back"):
        ResNet(18, output_stride=16, dilation="none")
    with pytest.raises(ConfigError, match=r"output_stride=8 takes strides away.*use full or contracted, got none"):
        build_model(model("upernet_r18", "model.backbone.output_stride=8"), 3)


def rates(network: ResNet) -> list[list[int]]:
    """Dilations of the blocks of layer3 and layer4."""
    return [[block.conv2.dilation[0] for block in layer] for layer in (network.layer3, network.layer4)]


@pytest.mark.parametrize(
    ("stride", "dilation", "strides", "expected"),
    [
        (None, None, (4, 8, 16, 32), [[2, 2], [4, 4]]),
        (32, "none", (4, 8, 16, 32), [[1, 1], [1, 1]]),
        (16, "full", (4, 8, 16, 16), [[1, 1], [2, 2]]),
        (16, "contracted", (4, 8, 16, 16), [[1, 1], [1, 2]]),
        (8, "full", (4, 8, 8, 8), [[2, 2], [4, 4]]),
        (8, "contracted", (4, 8, 8, 8), [[1, 2], [2, 4]]),
    ],
)
def test_strides_and_dilations(stride, dilation, strides, expected):
    network = ResNet(18, output_stride=stride, dilation=dilation)
    assert network.feature_strides == strides and rates(network) == expected
    maps = network(jt.zeros((1, 3, 64, 96)))
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(network.out_channels, strides, strict=True)
    ]


@pytest.mark.parametrize(("stem", "channels"), [("deep", [64, 64, 128]), ("v1c", [32, 32, 64]), ("plain", [64])])
def test_stems(stem: str, channels: list[int]):
    network = ResNet(18, stem=stem)
    found = [part for part in network.layer0.modules() if isinstance(part, Conv2d)]
    assert [part.weight.shape[0] for part in found] == channels
    keys = network.state_dict().keys()
    assert ("layer0.0.weight" in keys, "layer1.0.downsample.0.weight" in keys) == (stem == "plain", stem == "deep")
    assert tuple(network(jt.zeros((1, 3, 64, 64)))[0].shape) == (1, 64, 16, 16)


@pytest.mark.parametrize("name", ["pspnet_r18", "deeplabv3plus_r18", "ccnet_r18"])
def test_auxiliary_heads(name: str):
    network = create_model(name, num_classes=3)
    network.train()
    output = network(jt.array(np.random.default_rng(0).standard_normal((2, 3, 40, 56)).astype(np.float32)))
    (aux,) = output.aux_logits
    assert tuple(aux.shape) == (2, 3, 40, 56)
    (gradient,) = jt.grad((aux * aux).sum(), [network.state_dict()["layer3.0.conv1.weight"]])
    assert np.abs(gradient.numpy()).max() > 0
    none = build_model(model(name, "model.aux_dim=null"), 3)
    assert none.aux is None and not any(key.startswith("aux") for key in none.state_dict())


def test_auxiliary_heads_of_sfnet():
    network = build_model(model("sfnet_r18", "model.dsn=true"), 3)
    assert "head.dsn.2.4.bias" in network.state_dict()
    image = jt.zeros((2, 3, 64, 64))
    network.train()
    assert [tuple(aux.shape) for aux in network(image).aux_logits] == [(2, 3, 64, 64)] * 3
    network.eval()
    assert network(image).aux_logits == ()


def test_flow_of_nothing_is_resizing():
    align = FlowAlign(4)
    align.flow_make.weight.assign(jt.zeros_like(align.flow_make.weight))
    coarse = jt.array(np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3))
    warped = align(coarse, jt.zeros((1, 4, 3, 5))).numpy()
    np.testing.assert_allclose(
        warped[0, 0], [[0, 0.5, 1, 1.5, 2], [1.5, 2, 2.5, 3, 3.5], [3, 3.5, 4, 4.5, 5]], atol=1e-6
    )
    one = align(jt.ones((1, 4, 1, 1)), jt.zeros((1, 4, 1, 1))).numpy()
    np.testing.assert_allclose(one, 1)


@pytest.mark.parametrize("name", ["fpn_r18", "pointrend_r18", "farseg_r18", "upernet_lite_r18", "sfnet_r18"])
def test_sides_that_32_does_not_divide(name: str):
    network = create_model(name, num_classes=3)
    network.eval()
    with jt.no_grad():
        logits = network.predict(jt.zeros((1, 3, 70, 101)))
    assert tuple(logits.shape) == (1, 3, 70, 101) and np.isfinite(logits.numpy()).all()


def test_points_differ_from_step_to_step_and_from_sample_to_sample():
    network = create_model("pointrend_r18", num_classes=3)
    network.train()
    network.head.choice.count = 8
    image = jt.zeros((2, 3, 64, 64))
    first, second = (network(image).points.coordinates.numpy() for _ in range(2))
    assert first.shape == (2, 8, 2) and 0 <= first.min() and first.max() < 1
    assert (first != second).any() and (first[0] != first[1]).any()
    network.head.choice.generator = np.random.default_rng(0)
    again = network(image).points.coordinates.numpy()
    network.head.choice.generator = np.random.default_rng(0)
    np.testing.assert_array_equal(network(image).points.coordinates.numpy(), again)


def test_a_head_of_ones_own_on_any_backbone(tmp_path, monkeypatch):
    """One YAML file and one module in the working folder make `plain_r18`, `plain_mscan_t` and so on."""
    folder = tmp_path / "conf" / "model" / "head"
    folder.mkdir(parents=True)
    text = "# @package model\ndefaults: [common, _self_]\n_target_: plain_head.PlainHead\nwidth: 3\n"
    (folder / "plain.yaml").write_text(text)
    (tmp_path / "plain_head.py").write_text(
        "from pfseg.models.network import Head\n"
        "from pfseg.runtime import jt\n\n\n"
        "class PlainHead(Head):\n"
        "    def __init__(self, in_channels, num_classes, width):\n"
        "        super().__init__()\n"
        "        self.layers = jt.nn.Conv(in_channels[-1], num_classes, width, padding=width // 2)\n\n"
        "    def execute(self, features):\n"
        "        return self.layers(features[-1]), ()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    network = create_model("plain_r18", num_classes=3, in_channels=4)
    assert network.backbone.feature_strides == (4, 8, 16, 32) and rates(network.backbone) == [[1, 1], [1, 1]]
    assert tuple(network(jt.zeros((1, 4, 64, 96))).logits.shape) == (1, 3, 64, 96)
