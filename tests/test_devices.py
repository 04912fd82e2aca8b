from __future__ import annotations

from typing import Any

import pytest
from stand_in import settings

from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.devices import plan_ranks, visible_gpus
from pfseg.errors import ConfigError


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: ["0", "2", "5"])


@pytest.mark.parametrize(
    ("gpus", "ranks", "plan"),
    [
        ("auto", "auto", (3, ["0", "2", "5"])),
        (2, "auto", (2, ["0", "2"])),
        ([0, 2], "auto", (2, ["0", "5"])),
        (0, "auto", (1, [])),
        (0, 2, (2, [])),
        (1, 2, (2, ["0"])),
    ],
)
def test_plan(three_gpus: None, gpus: Any, ranks: Any, plan: tuple[int, list[str]]) -> None:
    assert plan_ranks(settings(gpus=gpus, ranks=ranks)) == plan


def test_some_precisions_need_a_gpu(three_gpus: None) -> None:
    assert plan_ranks(settings(gpus=1, ranks="auto", precision="fp16")) == (1, ["0"])
    assert plan_ranks(settings(gpus=0, ranks="auto", precision="bf16")) == (1, [])
    with pytest.raises(ConfigError, match=r"^precision=fp16 needs a GPU: use precision=fp32 or bf16 on a CPU$"):
        plan_ranks(settings(gpus=0, ranks="auto", precision="fp16"))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("gpus=4", r"^gpus=4 asks for more GPUs than are visible on \S+: 3 \(0, 2, 5\); use gpus=auto, or gpus=0"),
        ("gpus=[3]", r"^gpus=\[3\] asks for more"),
        ("gpus=all", r"^gpus\b.*all.*auto"),
        ("gpus=-1", r"^gpus\b.*-1.*auto"),
        ("gpus=true", r"^gpus\b.*true.*auto"),
        ("ranks=0", r"^ranks\b.*0.*auto.*at least 1"),
    ],
)
def test_errors(three_gpus: None, override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(compose("train", [override]))


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: [])
    with pytest.raises(ConfigError, match=r"visible on \S+: none; use gpus=auto"):
        plan_ranks(settings(gpus=1))


def test_visible_gpus_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidiactl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab,-1")
    assert visible_gpus() == ["3", "GPU-ab"]
