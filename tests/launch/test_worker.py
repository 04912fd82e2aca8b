from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pfseg.errors import ConfigError
from pfseg.launch.worker import _choose_devices, pack_config, take_config, write_result


def test_the_config_comes_back_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"lr": 1e-05, "classes": [{"name": "Gebäude", "color": "3E1098"}, {7: "001122"}], "root": None}
    for name, value in pack_config(yaml.safe_dump(config, allow_unicode=True)).items():
        monkeypatch.setenv(name, value)
    assert take_config() == config
    assert "PFSEG_JOB" not in os.environ, "children need not inherit it"


def test_array_scalars_are_numbers_in_the_result(tmp_path: Path) -> None:
    write_result(tmp_path, {"best/mIoU": np.float32(0.5), "step": np.int64(3), "file": tmp_path})
    assert json.loads((tmp_path / "result.json").read_text()) == {"best/mIoU": 0.5, "step": 3, "file": str(tmp_path)}


@pytest.mark.parametrize(
    ("visible", "local_rank", "own"), [("0,3", "0", "0"), ("0,3", "1", "3"), ("0,3", "2", "0"), ("3", "1", "3")]
)
def test_each_rank_of_a_host_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, local_rank: str, own: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PFSEG_DEVICE", raising=False)
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: visible.split(","))
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", local_rank)
    _choose_devices({"gpus": "auto"})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_a_host_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PFSEG_DEVICE", raising=False)
    monkeypatch.setattr("pfseg.devices.visible_gpus", lambda: [])
    with pytest.raises(
        ConfigError, match=r"^host \S+ has no GPU but .*: leave it out of launch\.hosts, or add gpus=0$"
    ):
        _choose_devices({"gpus": "auto"})


def test_importing_the_driver_and_the_worker_is_light() -> None:
    script = (
        "import sys, pfseg.launch.driver, pfseg.launch.worker; "
        "sys.exit(', '.join({'jittor', 'cv2', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stderr.strip() == ""
