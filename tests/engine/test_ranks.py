"""Sums over ranks, and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfseg.devices import Nodes
from pfseg.engine.ranks import memory_mib
from pfseg.launch.mpirun import _command, _environment


@pytest.mark.slow
def test_the_sum_over_ranks_is_exact(tmp_path: Path):
    script = tmp_path / "sum.py"
    script.write_text(
        "import numpy as np\n"
        "from pfseg.engine.ranks import sum_ranks\n"
        "from pfseg.runtime import rank\n"
        "counts = sum_ranks(np.array([2**40 + 1, rank()]))\n"
        "assert counts.tolist() == [2**41 + 2, 1], counts\n"
        "shares = sum_ranks(np.array([1 / 3, 0.1 * rank()]))\n"
        "assert shares.tolist() == [2 / 3, 0.1], shares\n"
    )
    env = _environment({"PFSEG_DEVICE": "cpu"})
    command = [*_command(2, Nodes(), env), sys.executable, str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_memory_is_that_of_this_process():
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    assert memory_mib()["rank_mib"] == pytest.approx(resident, rel=0.05)
