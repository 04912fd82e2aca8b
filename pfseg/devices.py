"""Which GPUs a job may use and how many ranks it has (no Jittor, no CUDA call)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pfseg.errors import ConfigError


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them (no CUDA call is made)."""
    if not os.path.exists("/dev/nvidiactl"):
        return []
    present = sorted(int(p.name[6:]) for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in present]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def plan_ranks(config: dict[str, Any]) -> tuple[int, list[str]]:
    """Work out how many ranks a job has and which GPUs they share.

    Args:
        config: with `gpus` (`auto`, a number, or a list of positions among the visible ones) and `ranks` (`auto`:
            one per GPU used, at least one; or a number).

    Returns:
        The number of ranks, and the GPUs' names for `CUDA_VISIBLE_DEVICES`, none on a CPU.

    Raises:
        ConfigError: more GPUs are asked for than are visible, or a value makes no sense.
    """
    gpus, ranks, visible = config.get("gpus", "auto"), config.get("ranks", "auto"), visible_gpus()
    if gpus == "auto":
        chosen = visible
    else:
        number = isinstance(gpus, int) and not isinstance(gpus, bool) and gpus >= 0
        wanted = list(range(gpus)) if number else gpus
        if not isinstance(wanted, list) or not all(isinstance(index, int) and index >= 0 for index in wanted):
            raise ConfigError(f"gpus={gpus!r} is not auto, a number or a list of numbers (config: gpus)")
        if any(index >= len(visible) for index in wanted):
            there = f"{len(visible)} ({', '.join(visible)})" if visible else "none"
            raise ConfigError(
                f"gpus={gpus} asks for more GPUs than are visible: {there}; use gpus=auto, or gpus=0 for the CPU"
            )
        chosen = [visible[index] for index in wanted]
    if ranks == "auto":
        return max(1, len(chosen)), chosen
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ConfigError(f"ranks={ranks!r} is not auto or a number of at least 1 (config: ranks)")
    return ranks, chosen
