"""PointRend: semantic FPN whose logits are refined at the points where they are least certain (Kirillov et al., 2020).

As in detectron2's `projects/PointRend`. Shapes: p2 (N, D, h, w) the finest map of the pyramid, coarse logits (N, K, h,
w); P points with coordinates (N, P, 2), x and y in [0, 1] of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pfseg.models import initial
from pfseg.models.fpn import FPNHead
from pfseg.models.network import HeadOutput, Points
from pfseg.ops.convolution import PointConv
from pfseg.ops.layers import Random
from pfseg.ops.points import scatter_points
from pfseg.ops.resampling import resize
from pfseg.ops.sampling import sample
from pfseg.ops.selection import top_points
from pfseg.runtime import Var, jt

STEPS = 2  # from stride 4 to that of the image
_CANDIDATES, _UNCERTAIN = 3, 0.75  # points drawn for each that is kept, and share of those kept by uncertainty


def uncertainty(logits: Var) -> Var:
    """The second largest of logits (N, K, ...) minus the largest, (N, 1, ...): the larger, the less certain."""
    best, top = jt.argmax(logits, 1, keepdims=True)
    classes = jt.array(np.arange(logits.shape[1], dtype=np.int32))
    classes = classes.broadcast(logits, [0, *range(2, logits.ndim)])
    others = jt.ternary(classes == best.broadcast(logits), jt.full_like(logits, -1e30), logits)
    second: Var = others.max(1, keepdims=True)
    return second - top


def _at(x: Var, coordinates: Var) -> Var:
    """Values (N, C, P) of maps (N, C, h, w) at coordinates (N, P, 2)."""
    height, width = x.shape[2:]
    size = jt.array(np.array([width, height], np.float32)).broadcast(coordinates, [0, 1])
    return sample(x, coordinates * size - 0.5)


class PointHead(jt.nn.Module):
    """Three layers and a classifier on the fine features and coarse logits of single points."""

    def __init__(self, fine: int, num_classes: int, dim: int) -> None:
        super().__init__()
        self.fc1 = PointConv(fine + num_classes, dim, relu=True)
        self.fc2 = PointConv(dim, dim, relu=True)
        self.fc3 = PointConv(dim, dim, relu=True)
        self.predictor = PointConv(dim, num_classes, relu=False)
        initial.kaiming(self)
        initial.normal(self.predictor, 0.001)

    def execute(self, fine: Var, coarse: Var) -> Var:
        """Map (N, D, P) and (N, K, P) to logits (N, K, P)."""
        logits: Var = self.predictor(self.fc3(self.fc2(self.fc1(jt.concat([fine, coarse], 1)))))
        return logits


class PointChoice(Random):
    """Which points of an image are trained on."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def execute(self, coarse: Var) -> Var:
        """Coordinates (N, P, 2): the least certain of three times as many random ones, then further random ones."""
        n, uncertain = coarse.shape[0], int(_UNCERTAIN * self.count)
        candidates = jt.array(self.draw(n, _CANDIDATES * self.count, 2).astype(np.float32))
        further = jt.array(self.draw(n, self.count - uncertain, 2).astype(np.float32))
        with jt.no_grad():
            order, _ = jt.argsort(uncertainty(_at(coarse, candidates)).squeeze(1), dim=1, descending=True)
            kept = candidates.reindex([n, uncertain, 2], ["i0", "@e0(i0,i1)", "i2"], extras=[order[:, :uncertain]])
            return jt.concat([kept, further], 1)


class PointRendHead(FPNHead):
    """PointRend on semantic FPN; see `PointRendSettings`."""

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        fpn_dim: int,
        point_dim: int,
        train_points: int,
        points: int,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, num_classes, fpn_dim=fpn_dim, **options)
        self.point_head = PointHead(fpn_dim, num_classes, point_dim)
        self.choice = PointChoice(train_points)
        self.points = points

    def execute(self, features: Sequence[Var]) -> HeadOutput:
        """Map c1..c4 to logits (N, K, H/4, W/4) and points in training, to refined logits (N, K, H, W) otherwise."""
        pyramid = self.fpn(features)
        coarse, p2 = self.coarse(pyramid), pyramid[0]
        if not self.is_training():
            return HeadOutput(self.refine(coarse, p2))
        coordinates = self.choice(coarse)
        return HeadOutput(coarse, points=Points(coordinates, self.classify(coarse, p2, coordinates)))

    def classify(self, coarse: Var, p2: Var, coordinates: Var) -> Var:
        """Logits (N, K, P) of points."""
        logits: Var = self.point_head(_at(p2, coordinates), _at(coarse, coordinates))
        return logits

    def refine(self, coarse: Var, p2: Var) -> Var:
        """Logits of four times the sides, classified anew at the least certain points of each doubling."""
        logits = coarse
        for _ in range(STEPS):
            n, k, height, width = (logits.shape[0], logits.shape[1], 2 * logits.shape[2], 2 * logits.shape[3])
            logits = resize(logits, (height, width), align_corners=False)
            chosen = top_points(uncertainty(logits), self.points)
            x = ((chosen % width).float32() + 0.5) / width
            y = ((chosen // width).float32() + 0.5) / height
            refined = self.classify(coarse, p2, jt.stack([x, y], 2))
            logits = scatter_points(logits.reshape(n, k, -1), refined, chosen).reshape(n, k, height, width)
        return logits
