"""A job whose ranks each work on a part of one batch, for comparison with one process that has all of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pfseg.launch.worker import main

Arrays = dict[str, np.ndarray]
# Of 3 images, without and with a valid pixel: ranks that count by themselves would differ.
LOSSES = {
    "ce": ("pfnet", {"ohem": False}),
    "ohem_threshold": ("pfnet", {"min_kept": 5}),
    "ohem_min_kept": ("pfnet", {"min_kept": 300, "ohem_threshold": 0.05}),
    "ohem_all": ("pfnet", {"min_kept": 10**6}),
    "dice": ("pfnet", {"ohem": False, "edge": "dice"}),
    "image_weighted": ("image_weighted", {}),
    "batch_weighted": ("image_weighted", {"segmentation.per": "batch", "segmentation.reduction": "sum"}),
    "relaxed": ("relaxed", {}),
}


def make_batch(images: int) -> Arrays:
    """Logits, labels and edges of so many images; the first has no valid pixel, the second no edge."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (images, 12, 10)).astype(np.int32)
    mask[rng.random(mask.shape) < 0.3] = 255
    mask[0] = 255
    edge = (rng.random(mask.shape) < np.linspace(0, 0.6, images).reshape(-1, 1, 1)).astype(np.float32)
    logits = 3 * rng.standard_normal((images, 4, 12, 10)).astype(np.float32)
    return {"logits": logits, "mask": mask, "edge": edge, "edge_logits": logits[:, :1].copy()}


def compute(batch: Arrays) -> Arrays:
    """Terms and gradients of every loss, BatchNorm and dropout, for this rank's part of a batch."""
    from building import build_loss

    from pfseg.models import SegOutput
    from pfseg.ops.batchnorm import BatchNorm2d
    from pfseg.ops.layers import ChannelDropout
    from pfseg.runtime import jt

    logits, mask, edge, edge_logits = (jt.array(batch[key]) for key in ("logits", "mask", "edge", "edge_logits"))
    found: Arrays = {}
    for name, (choice, changes) in LOSSES.items():
        loss = build_loss(choice, global_reduction=True, **changes)
        terms = loss(SegOutput(logits, (edge_logits,) * 3), {"mask": mask, "edge": edge})
        gradients = jt.grad(sum(terms.values()), [logits, edge_logits])
        found |= {f"{name}/{key}": value.numpy() for key, value in terms.items()}
        found |= {f"{name}/gradient{i}": value.numpy() for i, value in enumerate(gradients)}
    norm = BatchNorm2d(4)
    norm.train()
    y = norm(logits + 1000.0)  # far from zero: variances must not be taken as differences of large squares
    found["norm/y"] = y.numpy()
    gradients = jt.grad((y * logits * logits).sum() / 1000, [logits, norm.weight])
    found |= {f"norm/gradient{i}": value.numpy() for i, value in enumerate(gradients)}
    found |= {"norm/running_mean": norm.running_mean.numpy(), "norm/running_var": norm.running_var.numpy()}
    dropout = ChannelDropout(0.5)
    dropout.train()
    found["dropout/y"] = dropout(logits).numpy()
    return found


def job(config: dict[str, Any], folder: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    """Do this rank's part of `batch.npz`."""
    from pfseg.runtime import rank, world_size

    whole = np.load(folder / "batch.npz")
    share = len(whole["mask"]) // world_size()
    found = compute({key: whole[key][rank() * share :][:share] for key in whole.files})
    np.savez(folder / f"rank{rank()}.npz", **found)
    return {"status": "done"}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), job))
