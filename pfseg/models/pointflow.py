"""PointFlow: semantics flow from a coarse map to a finer one through two sets of matched points (paper, section 3.2).

Shapes: coarse (N, C, H, W), fine (N, C, h, w) with h = 2H for even sizes; P points, see `pfseg.ops.points`. Maps are in
the layout of `pfseg.ops.maps`; certainty and edge logits are (N, 1, H, W) float32 in each.
"""

from __future__ import annotations

from pfseg.ops import maps
from pfseg.ops.convolution import Conv2d, FloatConv2d
from pfseg.ops.layers import BatchNormReLU
from pfseg.ops.points import flow_points
from pfseg.ops.resampling import adaptive_max_pool, plane_avg_pool, plane_resize, resize
from pfseg.ops.selection import top_points
from pfseg.runtime import Var, jt

nn = jt.nn


class PointMatcher(jt.nn.Module):
    """Certainty that a cell needs semantics from the coarse map, from both maps reduced to `match_dim` channels."""

    def __init__(self, match_dim: int) -> None:
        super().__init__()
        self.match_conv = FloatConv2d(2 * match_dim, 1, 3, padding=1)

    def execute(self, coarse: Var, fine: Var) -> Var:
        """Map (N, M, H, W) and (N, M, h, w) to certainty (N, 1, H, W) in (0, 1)."""
        fine = resize(fine, maps.size(coarse))
        return jt.sigmoid(maps.plane(self.match_conv(maps.concat([coarse, fine]))))


class PointFlow(jt.nn.Module):
    """Dual point matching and flow between two neighbouring pyramid levels; see `PFNetSettings`.

    The boundary points, H*W at most, are the largest of the edge logits; 0 leaves their flow out, not the edge map. The
    salient points are the maxima of the certainty in `salient_pool`² cells; 0 leaves their flow out.
    """

    def __init__(
        self, channels: int, match_dim: int, num_edge_points: int, edge_pool: int, salient_pool: int, pooling: str
    ) -> None:
        super().__init__()
        self.num_edge_points = num_edge_points
        self.edge_pool, self.salient_pool, self.pooling = edge_pool, salient_pool, pooling
        self.point_matcher = PointMatcher(match_dim)
        self.down_h = Conv2d(channels, match_dim, 1)
        self.down_l = Conv2d(channels, match_dim, 1)
        self.edge_final = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1, bias=False),
            BatchNormReLU(channels),
            nn.Identity(),  # keeps the published key numbers, in which ReLU is a module
            FloatConv2d(channels, 1, 3, padding=1, bias=False),
        )

    def execute(self, coarse: Var, fine: Var) -> tuple[Var, Var]:
        """Give the fine map (N, C, h, w) with the points written over it, and edge logits (N, 1, H, W)."""
        size = maps.size(coarse)
        certainty = self.point_matcher(self.down_h(coarse), self.down_l(fine))
        average = plane_resize(plane_avg_pool(certainty, self.edge_pool, self.pooling), size)
        edge = maps.plane(self.edge_final(maps.modulate(coarse, average, -1.0)))
        boundary = salient = None
        if self.num_edge_points:
            with jt.no_grad():
                boundary = top_points(edge, self.num_edge_points)
        if self.salient_pool:
            maximum, points = adaptive_max_pool(certainty, self.salient_pool, self.pooling)
            salient = points, plane_resize(maximum, size)
        return flow_points(coarse, fine, boundary, salient), edge
