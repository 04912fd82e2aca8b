"""Averages by NCCL, whose library is replaced; that of one rank runs in `make gpu-check`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pfseg.devices import Nodes
from pfseg.launch.mpirun import _command, _environment

# A communicator holds what its ranks have been told; a sum is x * (that of the identity's bytes + 1000 ranks + rank).
NCCL = """
#include <stdlib.h>
#include <stddef.h>
typedef struct { unsigned char bytes[128]; } Identity;
int ncclGetUniqueId(Identity* identity) { for (int i = 0; i < 128; i++) identity->bytes[i] = i; return 0; }
int ncclCommInitRank(void** communicator, int ranks, Identity identity, int rank) {
    if (getenv("NCCL_FAILS") && rank == 1) return 2;
    float* factor = malloc(sizeof(float));
    *factor = 1000 * ranks + rank;
    for (int i = 0; i < 128; i++) *factor += identity.bytes[i];
    *communicator = factor;
    return 0;
}
int ncclAllReduce(const float* in, float* out, size_t count, int type, int operation, float* factor, void* stream) {
    if (type != 7 || operation != 4 || stream) return 4;
    for (size_t i = 0; i < count; i++) out[i] = in[i] * *factor;
    return 0;
}
"""
SCRIPT = """
import ctypes, os, sys
from pathlib import Path
import numpy as np
from pfseg.engine import nccl
from pfseg.ops import kernels
from pfseg.runtime import jt, rank
nccl.find_library = lambda: ctypes.CDLL(sys.argv[1])
kernels.emulate(Path(sys.argv[2]))
values = jt.array(np.arange(5, dtype=np.float32) * (1 + rank()))
def check(card, start, expected):
    nccl._card = lambda: card
    nccl.way.cache_clear()
    np.testing.assert_array_equal(nccl.average(values).numpy(), np.arange(5) * expected)
    assert nccl.way().text.startswith(start), nccl.way()
check(1 + rank(), "NCCL", (127 * 64 + 2000 + rank()) * (1 + rank()))
check(1, "MPI: ranks share a GPU", 1.5)
check(rank(), "MPI: NCCL isn't installed on every host", 1.5)
os.environ["NCCL_FAILS"] = "1"
ctypes.CDLL(None).setenv(b"NCCL_FAILS", b"1", 1)
check(1 + rank(), "MPI: NCCL didn't start", 1.5)
"""


@pytest.mark.slow
def test_ranks_use_nccl_where_each_has_a_card(library: Path, tmp_path: Path):
    (tmp_path / "nccl.c").write_text(NCCL)
    (tmp_path / "script.py").write_text(SCRIPT)
    nccl = tmp_path / "libnccl.so"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "nccl.c", "-o", nccl], check=True)
    env = _environment({"PFSEG_DEVICE": "cpu"})
    script = [sys.executable, str(tmp_path / "script.py"), str(nccl), str(library)]
    done = subprocess.run([*_command(2, Nodes(), env), *script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
