"""Losses of pixels on the GPU kernels: a launch for each direction where Jittor's operators would take dozens.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32; edge (N, H, W) float32. Losses are (1,) float32, and stay
on the device with all that leads to them.
"""

from __future__ import annotations

from pfseg.ops import kernels
from pfseg.ops.function import Function
from pfseg.runtime import Var

SCRATCH = ((12488,), "int32")  # `Scratch` of `cuda/losses.cu`


class _Pixels(Function):
    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index

    def execute(self, logits: Var, mask: Var) -> Var:
        self.inputs = [logits, mask]
        outputs = [(mask.shape, "float32")]
        return kernels.run("losses_pixels", outputs, self.inputs, ignore_index=self.ignore_index)[0]

    def grad(self, upstream: Var) -> tuple[Var, None]:
        inputs = [*self.inputs, upstream]
        outputs = [(self.inputs[0].shape, "float32")]
        return kernels.run("losses_pixels_gradient", outputs, inputs, ignore_index=self.ignore_index)[0], None


class _Mean(Function):
    def __init__(self, threshold: float, min_kept: int, ignore_index: int) -> None:
        self.options = {"threshold": threshold, "min_kept": min_kept, "ignore_index": ignore_index}

    def execute(self, logits: Var, mask: Var) -> Var:
        outputs = [(mask.shape, "float32"), ((2,), "float32"), ((1,), "float32"), SCRATCH]
        losses, state, loss, _ = kernels.run("losses_mean", outputs, [logits, mask], **self.options)
        self.inputs = [logits, mask, losses, state]
        return loss

    def grad(self, upstream: Var) -> tuple[Var, None]:
        inputs = [*self.inputs, upstream]
        outputs = [(self.inputs[0].shape, "float32")]
        return kernels.run("losses_mean_gradient", outputs, inputs, ignore_index=self.options["ignore_index"])[0], None


class _Edge(Function):
    def __init__(self, all_ranks: bool) -> None:
        self.all_ranks = all_ranks

    def execute(self, logits: Var, edge: Var) -> Var:
        loss, sums, _ = kernels.run("losses_edge", [((1,), "float32"), ((3,), "float32"), SCRATCH], [logits, edge])
        positive = sums  # whose first is read
        if self.all_ranks:
            positive = sums[:1].mpi_all_reduce("mean")
            count = edge.numel()
            loss = (sums[1:2] * (count - positive) + sums[2:] * positive) / count / count
        self.inputs = [logits, edge, positive]
        return loss

    def grad(self, upstream: Var) -> tuple[Var, None]:
        outputs = [(self.inputs[0].shape, "float32")]
        return kernels.run("losses_edge_gradient", outputs, [*self.inputs, upstream])[0], None


def pixel_cross_entropy(logits: Var, mask: Var, ignore_index: int) -> Var:
    """Cross entropy per pixel (N, H, W), 0 where ignored."""
    losses: Var = _Pixels(ignore_index)(logits, mask)
    return losses


def mean_cross_entropy(logits: Var, mask: Var, ignore_index: int) -> Var:
    """Mean cross entropy over the valid pixels, 0 without any."""
    loss: Var = _Mean(1.0, 0, ignore_index)(logits, mask)
    return loss


def ohem_cross_entropy(logits: Var, mask: Var, threshold: float, min_kept: int, ignore_index: int) -> Var:
    """Mean cross entropy over the hard pixels, as `pfseg.losses.OhemCrossEntropy` defines them, of this rank."""
    loss: Var = _Mean(threshold, min_kept, ignore_index)(logits, mask)
    return loss


def edge_cross_entropy(logits: Var, edge: Var, all_ranks: bool) -> Var:
    """Weighted binary cross entropy of edge logits (N, 1, H, W), as `pfseg.losses.EdgeLoss` defines it.

    With `all_ranks` positive pixels are counted over the batches of all ranks.
    """
    loss: Var = _Edge(all_ranks)(logits, edge)
    return loss
