"""Averages over the GPUs of all ranks: by NCCL, from GPU to GPU, or else by MPI through the memory of the hosts.

Jittor's own use of NCCL wants to download it, and to see all GPUs of a host in each rank. Here it comes from its wheel
or from the system; `PFSEG_NCCL=0` leaves it out.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfseg.engine.ranks import agreed, sum_ranks
from pfseg.ops import kernels
from pfseg.runtime import Var, jt, rank, world_size


class Way(NamedTuple):
    """How averages are made: in words, and with NCCL the options of the kernel."""

    text: str
    options: dict[str, float] | None = None


class Identity(ctypes.Structure):
    """What the ranks of one communicator know it by."""

    _fields_ = (("bytes", ctypes.c_uint8 * 128),)


def average(values: Var) -> Var:
    """Mean over all ranks of (T,) float32 on their GPUs; every rank has to call this in the same order."""
    options = way().options
    if options is None:
        averaged: Var = values.mpi_all_reduce("mean")
        return averaged
    return kernels.run("ranks_average", [(values.shape, "float32")], [values], **options)[0]


@cache
def way() -> Way:
    """How this job averages; the first call has to be that of every rank."""
    library = find_library()
    cards = np.zeros(world_size())
    cards[rank()] = _card() if library else 0
    cards = sum_ranks(cards)
    if not cards.all():
        return Way("MPI: NCCL isn't installed on every host, or PFSEG_NCCL=0")
    if len(np.unique(cards)) < world_size():
        return Way("MPI: ranks share a GPU, which NCCL doesn't allow")
    identity = np.zeros(128)
    if rank() == 0:
        identity[:] = new_identity(library).bytes
    options = join(library, Identity((ctypes.c_uint8 * 128)(*sum_ranks(identity).astype(int))), rank(), world_size())
    return Way("MPI: NCCL didn't start; NCCL_DEBUG=WARN says why") if agreed(not options) else Way("NCCL", options)


def find_library() -> Any:
    """NCCL's library; None where there isn't one, where it isn't wanted, and on a CPU."""
    if not jt.flags.use_cuda or os.environ.get("PFSEG_NCCL") == "0":
        return None
    for name in (str(Path(jt.flags.nvcc_path).parent.parent / "lib64" / "libnccl.so.2"), "libnccl.so.2"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def new_identity(library: Any) -> Identity:
    """The identity of a new communicator, for one rank to make and to tell the others; zeros if that fails."""
    identity = Identity()
    library.ncclGetUniqueId(ctypes.byref(identity))
    return identity


def join(library: Any, identity: Identity, rank: int, ranks: int) -> dict[str, float]:
    """Join a communicator, together with all its ranks; returns options of `ranks_average`, none if that fails."""
    communicator = ctypes.c_void_p()
    library.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, Identity, ctypes.c_int]
    if library.ncclCommInitRank(ctypes.byref(communicator), ranks, identity, rank) or not communicator.value:
        return {}
    function = ctypes.cast(library.ncclAllReduce, ctypes.c_void_p).value
    return {"communicator": communicator.value, "all_reduce": float(function or 0)}


def _card() -> int:
    """A number below 2**48 that no other card has, on any host."""
    name = ctypes.create_string_buffer(32)
    ctypes.CDLL(None).cudaDeviceGetPCIBusId(name, len(name), 0)
    return int.from_bytes(hashlib.sha256(socket.gethostname().encode() + name.value).digest()[:6], "big") | 1
