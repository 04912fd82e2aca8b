"""Multiply-adds and parameters of real networks; BatchNorm folded away."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pfseg import create_model
from pfseg.commands.profile import run as profile
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.engine.cost import clock, count
from pfseg.errors import ConfigError
from pfseg.inference.folding import fold_batchnorm
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.runtime import jt


@pytest.mark.parametrize(("side", "macs"), [(512, 85.6), (896, 262.0), (1024, 342.2)])
def test_the_published_network_costs_what_was_published(side, macs):
    stages, whole = count(create_model("pfnet_r50", num_classes=16), (1, 3, side, side))
    assert whole.parameters / 1e6 == pytest.approx(32.99, abs=0.005)
    assert whole.macs / 1e9 == pytest.approx(macs, abs=0.05)
    assert sum(stage.macs for stage in stages) == whole.macs
    assert sum(stage.parameters for stage in stages) == whole.parameters
    assert [stage.name for stage in stages] == [
        *(f"layer{i}" for i in range(5)),
        *(f"head.{part}" for part in ("ppm", "fpn_in", "fpn_out_align", "fpn_out", "conv_last")),
    ]


def trained(name: str):
    """A network whose BatchNorms do something."""
    model = create_model(name, num_classes=3)
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            count = module.weight.shape[0]
            for key, low, high in (("weight", 0.7, 1.3), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                getattr(module, key).assign(jt.array(rng.uniform(low, high, count).astype(np.float32)))
            module.running_var.assign(jt.array(rng.uniform(0.7, 1.5, count).astype(np.float32)))
    model.eval()
    return model


@pytest.mark.parametrize("name", ["pfnet_r18", "pfnet_r2n101", "deeplabv3plus_r18"])
def test_folding_changes_nothing_but_rounding(name):
    model = trained(name)
    image = jt.array(np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))
    with jt.no_grad():
        before = model.predict(image).numpy()
        used = (*model.backbone.modules(), *model.head.modules())  # and no auxiliary head
        assert fold_batchnorm(model) == sum(isinstance(m, BatchNorm2d) for m in used)
        after = model.predict(image).numpy()
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()
    assert before.std() > 0


def test_every_stage_is_timed():
    model = create_model("pfnet_r18", num_classes=3)
    stages, whole = count(model, (2, 3, 64, 64))
    clock(model, (2, 3, 64, 64), stages, whole, 1)
    assert all(stage.seconds > 0 for stage in [*stages, whole])
    assert not any("execute" in vars(module) for module in model.modules())


def test_the_command(capsys):
    profile(check(compose("profile", ["model=pfnet_r18", "size=[64,96]", "batch_size=2", "rounds=1"])))
    told = capsys.readouterr().out
    assert "pfnet_r18, 16 classes, 96x64 px, 2 at a time" in told
    assert re.search(r"all +18\.38 M +1\.7 +\d+ +\d+", told)
    assert re.search(r"images/s, peak memory \d\.\d\d GiB, 38 BatchNorms folded into convolutions", told)
    with pytest.raises(ConfigError, match=r"rounds=0: expected a whole number of at least 1"):
        check(compose("profile", ["rounds=0"]))
    with pytest.raises(ConfigError, match=r"^size=33 is too small for pfnet_r18, which takes 64 px a side at least$"):
        profile(check(compose("profile", ["model=pfnet_r18", "size=33"])))
