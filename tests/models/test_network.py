"""A backbone and a head of one's own, put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfseg.errors import ConfigError
from pfseg.models.network import Backbone, Head, SegmentationNetwork
from pfseg.ops.convolution import Conv2d
from pfseg.runtime import jt


class Halves(Backbone):
    """Two maps, at strides 2 and 4."""

    out_channels = (4, 8)
    feature_strides = (2, 4)

    def __init__(self):
        super().__init__()
        self.first = Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = Conv2d(4, 8, 3, stride=2, padding=1)

    def execute(self, image):
        first = self.first(image)
        return [first, self.second(first)]


class Classify(Head):
    """Logits from the coarsest map."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.classify = Conv2d(in_channels[-1], num_classes, 1)

    def execute(self, features):
        return self.classify(features[-1]), ()


class Small(SegmentationNetwork):
    def __init__(self, backbone, num_classes):
        super().__init__(backbone, Classify(backbone.out_channels, num_classes), num_classes)


@pytest.fixture
def network():
    return Small(Halves(), 5)


def test_sizes_and_strides(network):
    image = jt.array(np.random.default_rng(0).standard_normal((2, 3, 17, 12)).astype(np.float32))
    assert [tuple(feature.shape) for feature in network.features(image)] == [(2, 4, 9, 6), (2, 8, 5, 3)]
    output = network(image)
    assert tuple(output.logits.shape) == (2, 5, 17, 12) and output.edge_logits == ()
    np.testing.assert_array_equal(network.predict(image).numpy(), output.logits.numpy())
    assert network.num_classes == 5
    assert network.output_stride == network.backbone.output_stride == network.min_size == 4


def test_a_module_of_five_layers_is_a_backbone():
    backbone = jt.nn.Module()
    backbone.out_channels, backbone.feature_strides = (2, 3, 4, 5), (2, 4, 8, 16)
    for number, (before, after) in enumerate([(3, 3), (3, 2), (2, 3), (3, 4), (4, 5)]):
        stride = 1 if number == 1 else 2
        setattr(backbone, f"layer{number}", Conv2d(before, after, 3, stride=stride, padding=1))
    network = Small(backbone, 5)
    maps = network.features(jt.zeros((1, 3, 32, 48)))
    assert [tuple(feature.shape[1:]) for feature in maps] == [(2, 16, 24), (3, 8, 12), (4, 4, 6), (5, 2, 3)]
    assert next(iter(network.state_dict())) == "layer0.weight"


def test_too_small_an_input(network):
    with pytest.raises(ConfigError, match=r"input of 17x3 px is too small: Small needs at least 4 px a side; pad the"):
        network(jt.zeros((1, 3, 17, 3)))


def test_weights_have_the_backbones_own_names(network):
    names = [f"{part}.{kind}" for part in ("first", "second", "head.classify") for kind in ("weight", "bias")]
    assert list(network.state_dict()) == names
    assert [name for name, _ in network.named_parameters()] == names
    assert len(network.parameters()) == len(names)


def test_weights_go_back_by_name(network):
    other = Small(Halves(), 5)
    other.load_state_dict({key: var.numpy() for key, var in network.state_dict().items()})
    for key, var in other.state_dict().items():
        np.testing.assert_array_equal(var.numpy(), network.state_dict()[key].numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["pfnet_r18", "pfnet_r2n101"])
def test_a_network_of_three_bands_widened_to_four(name: str, tmp_path: Path) -> None:
    """A further band of zeros changes no logit; the network says how many bands it takes."""
    from pfseg.build import create_model
    from pfseg.weights.checkpoint import save_checkpoint
    from pfseg.weights.transfer import export_weights, load_network

    three = create_model(name, num_classes=2)
    save_checkpoint(
        tmp_path / "three.safetensors", export_weights(three), {"config": {"model": {"variant": "pytorch"}}}
    )
    four = create_model(name, num_classes=2, in_channels=4)
    assert four.in_channels == 4
    load_network(four, tmp_path / "three.safetensors")
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    wide = np.concatenate([image, np.zeros((1, 1, 64, 64), np.float32)], axis=1)
    for model in (three, four):
        model.eval()
    with jt.no_grad():
        expected, found = (model.predict(jt.array(given)).numpy() for model, given in ((three, image), (four, wide)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
