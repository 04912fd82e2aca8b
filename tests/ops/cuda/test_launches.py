"""How many launches a step and a prediction take: own kernels, and calls of cuDNN and cuBLAS."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from building import build_loss

from pfseg import create_model
from pfseg.inference.folding import fold_batchnorm
from pfseg.models.network import SegmentationNetwork
from pfseg.ops.optimizers import Sgd
from pfseg.runtime import Var, jt

Count = Callable[[], tuple[int, int]]


@pytest.fixture
def count(emulated: str, library: Path) -> Iterator[Count]:
    """Gives the launches since its last call, and the runs of Jittor's own operators; nothing is computed meanwhile."""
    if library == Path():
        pytest.skip("counts launches of the emulated kernels, which a machine with a GPU leaves alone")
    launches = ctypes.CDLL(str(library)).pfseg_launches
    launches.restype = ctypes.c_int64
    jt.sync_all()
    before = launches(True)
    jt.profiler.start(0, 0)

    def since() -> tuple[int, int]:
        nonlocal before
        jt.sync_all()
        jt.profiler.stop()
        head, *rows = jt.profiler.report()
        earlier, before = before, launches(True)
        jt.profiler.start(0, 0)
        return before - earlier, sum(int(row[head.index("Count")]) for row in rows)

    yield since
    jt.sync_all()
    jt.profiler.stop()
    launches(False)


@pytest.fixture
def network() -> SegmentationNetwork:
    return create_model("pfnet_r50", num_classes=5)


def image() -> Var:
    return jt.zeros((1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("emulated", ["bf16"], indirect=True)
def test_training_step(count, network):
    network.train()
    optimizer = Sgd(network.parameters(), lr=0.01, momentum=0.9)
    batch = {"mask": jt.zeros((1, 64, 64), "int32"), "edge": jt.zeros((1, 64, 64))}
    for _ in range(2):
        count()
        optimizer.step(sum(build_loss(ohem=True, min_kept=100)(network(image()), batch).values()))
        launches, operators = count()
    assert launches <= 700
    assert operators <= 50


@pytest.mark.parametrize("emulated", ["bf16"], indirect=True)
@pytest.mark.parametrize("folded", [False, True])
def test_prediction(count, network, folded):
    network.eval()
    if folded:
        fold_batchnorm(network)
    results = []
    with jt.no_grad():
        for _ in range(3):
            count()
            network.predict(image()).sync()
            results.append(count())
        # another weight: all are packed anew
        weight = network.head.conv_last[1].weight
        weight.update(jt.array(np.ones(weight.shape, np.float32)))
        count()
        network.predict(image()).sync()
        results.append(count())
    launches, operators = (list(column) for column in zip(*results, strict=True))
    assert max(launches[1:3]) <= 220
    assert launches[0] == launches[3] == launches[1] + 1
    assert max(operators) <= 10
