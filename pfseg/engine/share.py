"""Files of rank 0's host for ranks on hosts that don't share its file system."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

import numpy as np

from pfseg.runtime import jt, rank, world_size

_CHUNK = 1 << 26  # bytes


def on_every_rank(path: Path) -> Path:
    """Path of a file or, on ranks whose host doesn't have it, of a copy of rank 0's until the process ends.

    Every rank has to call this for the same file. Where rank 0 doesn't have it, the path comes back as it is.
    """
    if world_size() == 1:
        return path
    mine = path.is_file()
    found = jt.array([float(mine)]).mpi_all_reduce("add").numpy()[0]
    if found == world_size():
        return path
    content = np.fromfile(path, np.uint8) if rank() == 0 and mine else np.empty(0, np.uint8)
    size = int(jt.array([float(len(content))], dtype="float64").mpi_broadcast(0).numpy()[0])
    file = None if mine or size == 0 else tempfile.NamedTemporaryFile(prefix="pfseg-", suffix=path.suffix)
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
