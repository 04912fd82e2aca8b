"""Measures of a training besides losses and scores: gradient norms and memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pfseg.engine.optimizer import Optimizer, gradients
from pfseg.runtime import jt, world_size
from pfseg.weights.transfer import Module, Var


def gradient_norms(model: Module, optimizer: Optimizer) -> tuple[list[str], Var]:
    """Norms of the gradients that the optimizer holds, already averaged over the ranks.

    Returns:
        Names, `grad_norm` over all weights and `grad_norm/<part>` for each of the network's parts (`layer0`, `head`,
        ...), and their values (T,) float32, which stay on the device.
    """
    parts = {id(parameter): name.partition(".")[0] for name, parameter in model.named_parameters()}
    squares: dict[str, Var] = {}
    for parameter, gradient in gradients(optimizer):
        part, square = parts[id(parameter)], gradient.sqr().sum()
        squares[part] = squares[part] + square if part in squares else square
    values = jt.concat([square.reshape(1) for square in squares.values()])
    names = ["grad_norm", *(f"grad_norm/{part}" for part in squares)]
    return names, jt.concat([values.sum().reshape(1), values]).sqrt()


def memory_mib() -> dict[str, float]:
    """Memory in MiB, the mean over the ranks: `rank_mib` of the process, on GPUs also `gpu_mib` that Jittor holds."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    sizes = np.array([resident, jt.get_mem_info().total_cuda_used], np.float32) / 2**20
    if world_size() > 1:
        sizes = jt.array(sizes).mpi_all_reduce("mean").numpy()
    rank_mib, gpu_mib = sizes.tolist()
    return {"rank_mib": rank_mib, "gpu_mib": gpu_mib} if jt.flags.use_cuda else {"rank_mib": rank_mib}
