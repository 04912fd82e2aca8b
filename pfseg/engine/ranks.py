"""What the ranks of a job tell each other besides gradients: sums, agreements, memory, and files of rank 0's host.

A lone process does without Jittor, unless it asks for memory.
"""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

import numpy as np
import psutil

from pfseg.devices import rank, world_size

_CHUNK = 1 << 26  # bytes


def sum_ranks(counts: np.ndarray) -> np.ndarray:
    """Sum (N,) int64 or float64 over all ranks, whole numbers exactly up to 2**53; every rank waits for the others."""
    from pfseg.runtime import jt

    # Jittor makes float64 float32 unless told not to, and has no sum of int64.
    return jt.array(counts, dtype="float64").mpi_all_reduce("add").numpy().astype(counts.dtype)


def agreed(wanted: bool) -> bool:
    """True on every rank if it is true on any of them."""
    return wanted if world_size() == 1 else bool(sum_ranks(np.array([int(wanted)]))[0])


def memory_mib() -> dict[str, float]:
    """Memory in MiB, the mean over the ranks: `rank_mib` of the process, on GPUs also `gpu_mib` that Jittor holds."""
    from pfseg.runtime import jt

    resident = psutil.Process().memory_info().rss
    sizes = np.array([resident, jt.get_mem_info().total_cuda_used], np.float32) / 2**20
    if world_size() > 1:
        sizes = jt.array(sizes).mpi_all_reduce("mean").numpy()
    return dict(zip(("rank_mib", "gpu_mib") if jt.flags.use_cuda else ("rank_mib",), sizes.tolist(), strict=False))


def on_every_rank(path: Path) -> Path:
    """Path of a file or, on ranks whose host doesn't have it, of a copy of rank 0's, kept until the process ends.

    Every rank has to call this for the same file. Where rank 0 doesn't have it, the path comes back as it is.
    """
    if world_size() == 1:
        return path
    from pfseg.runtime import jt

    here = path.is_file()
    if sum_ranks(np.array([int(here)]))[0] == world_size():
        return path
    content = np.fromfile(path, np.uint8) if rank() == 0 and here else np.empty(0, np.uint8)
    size = int(jt.array([float(len(content))], dtype="float64").mpi_broadcast(0).numpy()[0])
    file = None if here or size == 0 else tempfile.NamedTemporaryFile(prefix="pfseg-", suffix=path.suffix)
    for start in range(0, size, _CHUNK):
        part = content[start : start + _CHUNK] if rank() == 0 else np.zeros(min(_CHUNK, size - start), np.uint8)
        received = jt.array(part).mpi_broadcast(0).numpy()
        if file:
            file.write(received.tobytes())
    if not file:
        return path
    file.flush()
    atexit.register(file.close)
    return Path(file.name)
