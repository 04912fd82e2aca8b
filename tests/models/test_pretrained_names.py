"""Names of weights in published files of backbones."""

from __future__ import annotations

import pytest

from pfseg.models.convnext import ConvNeXt
from pfseg.models.mscan import MSCAN
from pfseg.models.resnet import ResNet

PARTS = ("weight", "running_mean")
CASES = {
    "deep stem": (
        ResNet,
        {
            "conv1.0.weight": "layer0.0.0.weight",
            "conv1.6.weight": "layer0.0.6.weight",
            "bn1.bias": "layer0.1.bias",
            "layer1.0.conv1.weight": "layer1.0.conv1.weight",
        },
    ),
    "plain stem": (ResNet, {"conv1.weight": "layer0.0.weight", "bn1.weight": "layer0.1.weight", "fc.bias": "fc.bias"}),
    "MIT CSAIL": (
        ResNet,
        {
            "conv1.weight": "layer0.0.0.weight",
            "bn1.weight": "layer0.0.1.weight",
            "conv2.weight": "layer0.0.3.weight",
            "bn2.running_var": "layer0.0.4.running_var",
            "conv3.weight": "layer0.0.6.weight",
            "bn3.bias": "layer0.1.bias",
            "layer1.0.conv3.weight": "layer1.0.conv3.weight",
            "layer1.0.bn1.weight": "layer1.0.bn1.weight",
        },
    ),
    "mmsegmentation's stem": (
        ResNet,
        {f"stem.{i}.weight": f"layer0.0.{i}.weight" for i in (0, 1, 3, 4, 6)} | {"stem.7.bias": "layer0.1.bias"},
    ),
    "MSCAN of the authors": (
        MSCAN,
        {"block1.0.mlp.dwconv.dwconv.weight": "block1.0.mlp.dwconv.dwconv.weight", "head.bias": "classifier.head.bias"},
    ),
    "MSCAN of mmsegmentation": (
        MSCAN,
        {
            "block1.0.mlp.dwconv.weight": "block1.0.mlp.dwconv.dwconv.weight",
            "patch_embed1.proj.0.bias": "patch_embed1.proj.0.bias",
        },
    ),
    "ConvNeXt of the authors": (
        ConvNeXt,
        {
            "stages.0.1.gamma": "stages.0.1.gamma",
            "norm.weight": "classifier.norm.weight",
            "head.weight": "classifier.head.weight",
        },
    ),
    "ConvNeXt of torchvision": (
        ConvNeXt,
        {
            "features.0.0.weight": "downsample_layers.0.0.weight",
            "features.6.1.bias": "downsample_layers.3.1.bias",
            "features.5.8.block.0.weight": "stages.2.8.dwconv.weight",
            "features.1.0.block.5.bias": "stages.0.0.pwconv2.bias",
            "features.7.2.layer_scale": "stages.3.2.gamma",
            "classifier.2.weight": "classifier.classifier.2.weight",
        },
    ),
}


@pytest.mark.parametrize(("backbone", "names"), CASES.values(), ids=CASES.keys())
def test_names(backbone: type, names: dict[str, str]) -> None:
    assert {key: backbone.rename_pretrained(key, names.keys()) for key in names} == names
