"""Losses of PFNet, those that the published code offers, and others: float32 scalars, computed on the device.

Shapes: logits (N, K, H, W) float32; mask (N, H, W) int32 in [0, K) or `ignore_index`; edge logits (N, 1, H, W); edge
(N, H, W) float32 0 or 1. A batch without a valid pixel gives 0 and finite gradients.

Over several ranks gradients and terms are averaged. A loss that divides by the pixels of its own rank is then the mean
of the ranks' means; with `global_reduction` valid and kept pixels, class and edge frequencies are counted over the
batches of all ranks, and the average is the loss of the global batch, as one rank would compute it. Losses of regions
are of the rank's own batch in any case.
"""

from pfseg.losses.combined import PFNetLoss
from pfseg.losses.cross_entropy import CrossEntropy, OhemCrossEntropy
from pfseg.losses.edges import EdgeLoss
from pfseg.losses.focal import FocalLoss
from pfseg.losses.neighbourhoods import ImageWeightedCrossEntropy, RelaxedBoundaryLoss
from pfseg.losses.regions import LovaszLoss, TverskyLoss

__all__ = [
    "CrossEntropy",
    "EdgeLoss",
    "FocalLoss",
    "ImageWeightedCrossEntropy",
    "LovaszLoss",
    "OhemCrossEntropy",
    "PFNetLoss",
    "RelaxedBoundaryLoss",
    "TverskyLoss",
]
