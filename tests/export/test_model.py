"""Networks in ONNX Runtime give what they give in Jittor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import numpy as np
import onnxruntime
import pytest
from building import build_pfnet

from pfseg import create_model
from pfseg.config.compose import networks
from pfseg.errors import ConfigError
from pfseg.export.comparison import Agreement, compare
from pfseg.export.model import to_onnx
from pfseg.models.network import Head, SegmentationNetwork
from pfseg.runtime import jt

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
HEADS = sorted({head for head, _ in networks().values()})
NETWORKS = [*(f"{head}_r18" for head in HEADS), "segnext_t", "convnext_t_upernet", "pfnet_r2n101"]
BASELINES = (
    "fpn_r50", "pointrend_r50", "upernet_r50", "pspnet_r50", "deeplabv3plus_r50", "sfnet_r18", "farseg_r50",
    "ccnet_r50", "segnext_t", "convnext_t_upernet",
)  # fmt: skip
SMALL = {"fpn_dim": 32, "match_dim": 16, "num_edge_points": 20}


def agreement(network: Any, batch: np.ndarray, **options: Any) -> Agreement:
    """How an exported network agrees with its answer for a normalised batch."""
    with jt.no_grad():
        expected = network.predict(jt.array(batch)).numpy()
    settings: dict[str, Any] = {"size": batch.shape[2], "mean": MEAN, "std": STD, "dynamic_batch": len(batch) > 1}
    made = to_onnx(network, metadata={"key": "value"}, **settings | options)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"key": "value"}
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (MEAN, STD))
    (probabilities,) = session.run(None, {"image": batch * std + mean})
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    return compare(expected, np.log(np.maximum(probabilities, 1e-30)))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_conf(name: str):
    network = golden.fill(build_pfnet(name))
    found = agreement(network, noise(2, 3, 64, 64))
    assert found.deviation < 1e-4 and found.same == 1


@pytest.mark.parametrize("size", [96, 160])
def test_any_number_of_images(size: int):
    """At these sizes several salient points are one cell, of which the last wins."""
    network = golden.fill(build_pfnet("pfnet_r18", **SMALL))
    found = agreement(network, noise(2, 3, size, size))
    assert found.deviation < 1e-4 and found.same == 1


@pytest.mark.slow
def test_the_pooling_of_the_other_variant():
    network = golden.fill(create_model("pfnet_r18", num_classes=3, variant="jittor"))
    found = agreement(network, noise(1, 3, 448, 448))
    assert found.deviation < 1e-4 and found.same == 1


@pytest.mark.parametrize("points", [{"num_edge_points": 0}, {"salient_pool": 0}], ids=["salient", "boundary"])
def test_either_kind_of_points_alone(points: dict[str, int]):
    found = agreement(golden.fill(build_pfnet("pfnet_r18", **SMALL | points)), noise(1, 3, 64, 64))
    assert found.deviation < 1e-4 and found.same == 1


@pytest.mark.parametrize("bias", [0, 17, -33])
def test_of_equal_certainties_the_first_counts(bias: float):
    """Where the certainty is 0 or 1 up to rounding, the points would be others in another order."""
    network = golden.fill(build_pfnet("pfnet_r18", **SMALL))
    for flow in network.head.fpn_out_align:
        convolution = flow.point_matcher.match_conv
        convolution.weight.assign(convolution.weight * (1 if bias else 0))
        convolution.bias.assign(jt.array([float(bias)]))
    found = agreement(network, noise(1, 3, 96, 96))
    assert found.deviation < 1e-4 and found.same == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pfnet_r50", *BASELINES])
def test_the_published_networks(name: str):
    """As their authors' modules answer."""
    stored = golden.load(f"{'' if name == 'pfnet_r50' else 'baselines/'}{name}_256")
    network = golden.fill(create_model(name, num_classes=16))
    if "subdivision_num_points" in stored:
        network.head.points = int(stored["subdivision_num_points"])
    image = np.random.default_rng(int(stored["input_seed"])).standard_normal((1, 3, 256, 256)).astype(np.float32)
    made = to_onnx(network, size=256, mean=(0.0,) * 3, std=(1.0,) * 3, dynamic_batch=False, metadata={})
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"image": image})
    labels = np.squeeze(stored["argmax"])
    step = 256 // len(labels)
    assert (probabilities[0].argmax(0)[::step, ::step] == labels).mean() > 0.999
    expected = stored["logits"].reshape(1, 16, 16, 16).astype(np.float64)
    assert compare(expected, np.log(probabilities[:, :, ::16, ::16])).deviation < 1e-3


class Plain(Head):
    """A convolution that no table knows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = jt.nn.Conv(channels, 2, 1)

    def execute(self, features):
        return self.layer(features[-1]), ()


class Known(Plain):
    """The same, which says what it becomes."""

    def to_onnx(self, graph, features):
        return graph.call(self.layer, features[-1])


def test_a_head_of_the_users_own_says_what_it_becomes():
    backbone = build_pfnet("pfnet_r18").backbone
    network = SegmentationNetwork(backbone, Known(512), 2)
    network.eval()
    assert agreement(network, noise(1, 3, 64, 64)).deviation < 1e-4
    with pytest.raises(ConfigError, match=r"test_model.Plain can't be exported to ONNX yet: give it a method to_onnx"):
        agreement(SegmentationNetwork(backbone, Plain(512), 2), noise(1, 3, 64, 64))


def test_logits_are_compared_up_to_a_constant_and_ties():
    logits = np.array([[[[0.0, 4.0, 1.0]], [[2.0, 0.0, 1.0]]]], np.float32)
    assert compare(logits, logits + 7) == (0, 1)
    other = logits.copy()
    other[0, :, 0, 2] = 1.0, 1.0001  # a tie before
    assert compare(logits, other).same == 1
    other[0, 0, 0, 1] = -1.0
    found = compare(logits, other)
    assert found.same == pytest.approx(2 / 3) and 0.2 < found.deviation < 2


def test_a_file_says_which_operators_it_uses(tmp_path: Path):
    made = to_onnx(
        golden.fill(build_pfnet("pfnet_r18", **SMALL)), size=64, mean=MEAN, std=STD, dynamic_batch=False, metadata={}
    )
    assert (made.opset_import[0].version, made.ir_version, made.producer_name) == (17, 8, "pfseg")
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
