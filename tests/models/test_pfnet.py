"""Contracts of every network: sizes, outputs, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pfseg import SegOutput, create_model
from pfseg.errors import CheckpointError, ConfigError
from pfseg.models.pfnet import PFNet
from pfseg.models.pointflow import PointFlow
from pfseg.models.res2net import Res2Net
from pfseg.models.resnet import ResNet
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt


@pytest.fixture(scope="module")
def small():
    return create_model("pfnet_r18", num_classes=3)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (96, 70)])
def test_any_size_from_64_px(small, size):
    small.eval()
    image = jt.array(np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32))
    out = small(image)
    assert isinstance(out, SegOutput)
    assert tuple(out.logits.shape) == (1, 3, *size)
    assert [tuple(edge.shape) for edge in out.edge_logits] == [(1, 1, *size)] * 3
    np.testing.assert_allclose(small.predict(image).numpy(), out.logits.numpy(), atol=1e-6)


def test_too_small_an_input_names_the_minimum(small):
    with pytest.raises(ConfigError, match=r"input of 63x80 px is too small: variant 'pytorch' needs at least 64 px"):
        small(jt.zeros((1, 3, 63, 80)))
    network = create_model("pfnet_r18", num_classes=3, variant="jittor")
    with pytest.raises(ConfigError, match=r"variant 'jittor' needs at least 448 px a side.*dataset.crop_size"):
        network(jt.zeros((1, 3, 416, 448)))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"pfnet_r50"):
        create_model("pfnet_r5O", num_classes=3)
    sizes = dict(num_edge_points=1, match_dim=1, fpn_dim=1, edge_pool=1, salient_pool=1, pool_sizes=None, dropout=0)
    with pytest.raises(ValueError, match=r"variant 'tf' is unknown; use one of \['jittor', 'pytorch'\]"):
        PFNet(ResNet(18), 3, variant="tf", **sizes)
    with pytest.raises(ValueError, match=r"ResNet of depth 34 is unknown; use one of \[18, 50, 101\]"):
        ResNet(34)
    with pytest.raises(ValueError, match=r"Res2Net of depth 34 is unknown; use one of \[50, 101\]"):
        Res2Net(34)


def test_frozen_batchnorm_outlasts_train():
    norm = BatchNorm2d(2)
    norm.freeze()
    norm.train()
    x = jt.array(np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32) + 5)
    np.testing.assert_allclose(norm(x).numpy(), x.numpy() / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert norm.running_mean.numpy().tolist() == [0, 0]


def test_batchnorm_statistics_as_a_plain_average():
    norm = BatchNorm2d(1)
    norm.train()
    norm.momentum = None
    norm.reset_running_stats()
    for value in (1.0, 2.0, 6.0):
        norm(jt.array(np.full((1, 1, 1, 2), value, np.float32)))
    np.testing.assert_allclose(norm.running_mean.numpy(), [3.0], rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), [0.0], atol=1e-6)


def test_pretrained_backbone(tmp_path):
    from safetensors.numpy import save_file

    source = create_model("pfnet_r18", num_classes=3)
    weights = {
        key.replace("layer0.0.", "conv1.").replace("layer0.1.", "bn1."): var.numpy()
        for key, var in source.state_dict().items()
        if key.startswith("layer")
    }
    save_file(weights | {"fc.weight": np.zeros((10, 512), np.float32)}, tmp_path / "r18.safetensors")
    loaded = create_model("pfnet_r18", num_classes=5, pretrained=tmp_path / "r18.safetensors")
    state = loaded.state_dict()
    for key, var in source.state_dict().items():
        if key.startswith("layer"):
            assert (state[key].numpy() == var.numpy()).all(), key


def test_pretrained_file_that_matches_nothing(tmp_path):
    from safetensors.numpy import save_file

    save_file({"encoder.weight": np.zeros((3,), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"nothing in .*other.safetensors matches the backbone: expected keys such"
    ):
        create_model("pfnet_r18", num_classes=3, pretrained=tmp_path / "other.safetensors")


@pytest.mark.parametrize(("edge_points", "salient_pool"), [(5, 0), (0, 3), (0, 0), (5, 3)])
def test_either_branch_of_the_flow_can_be_left_out(edge_points: int, salient_pool: int):
    rng = np.random.default_rng(0)
    coarse, fine = (jt.array(rng.standard_normal((1, 4, side, side)).astype(np.float32)) for side in (6, 12))
    flow = PointFlow(4, 2, edge_points, edge_pool=3, salient_pool=salient_pool, pooling="floor_ceil")
    moved, edge = flow(coarse, fine)
    assert tuple(edge.shape) == (1, 1, 6, 6)
    changed = int((moved.numpy() != fine.numpy()).any(axis=1).sum())
    most = edge_points + salient_pool**2
    assert max(edge_points, salient_pool**2) <= changed <= most
