from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pfseg.worker import _choose_gpu, load_config, write_result


def test_the_config_comes_back_as_written(tmp_path: Path) -> None:
    config = {"lr": 1e-05, "classes": [{"name": "Gebäude", "color": "3E1098"}, {"color": "001122"}], "root": None}
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    assert load_config(tmp_path) == config


def test_array_scalars_are_numbers_in_the_result(tmp_path: Path) -> None:
    write_result(tmp_path, {"best/mIoU": np.float32(0.5), "step": np.int64(3), "file": tmp_path})
    assert json.loads((tmp_path / "result.json").read_text()) == {"best/mIoU": 0.5, "step": 3, "file": str(tmp_path)}


@pytest.mark.parametrize(
    ("visible", "local_rank", "own"), [("0,3", "0", "0"), ("0,3", "1", "3"), ("0,3", "2", "0"), ("3", "1", "3")]
)
def test_each_rank_of_a_host_has_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, local_rank: str, own: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", local_rank)
    _choose_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_importing_the_driver_and_the_worker_is_light() -> None:
    script = (
        "import sys, pfseg.launch, pfseg.worker; sys.exit(', '.join({'jittor', 'cv2', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stderr.strip() == ""
