"""PointFlow: semantics flow from a coarse map to a finer one through two sets of matched points (paper, section 3.2).

Shapes: coarse (N, C, H, W), fine (N, C, h, w) with h = 2H for even sizes; P points. A point index counts the cells of
the coarse map row by row; it lands in the fine map at (floor(y * h / H), floor(x * w / W)): multiplying the flat index
first, as the published code does, lands on wrong rows unless h = 2H and w = 2W.
"""

from __future__ import annotations

from pfseg.ops.convolution import Conv2d, batched_matmul
from pfseg.ops.layers import BatchNormReLU
from pfseg.ops.points import gather_points, sample_points, scatter_points
from pfseg.ops.resampling import adaptive_avg_pool, adaptive_max_pool, resize
from pfseg.ops.selection import top_points
from pfseg.runtime import Var, jt

nn = jt.nn


class PointMatcher(jt.nn.Module):
    """Certainty that a cell needs semantics from the coarse map, from both maps reduced to `match_dim` channels."""

    def __init__(self, match_dim: int) -> None:
        super().__init__()
        self.match_conv = Conv2d(2 * match_dim, 1, 3, padding=1)

    def execute(self, coarse: Var, fine: Var) -> Var:
        """Map (N, M, H, W) and (N, M, h, w) to certainty (N, 1, H, W) in (0, 1)."""
        fine = resize(fine, coarse.shape[2:])
        return jt.sigmoid(self.match_conv(jt.concat([coarse, fine], 1)))


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
            Conv2d(channels, 1, 3, padding=1, bias=False),
        )

    def execute(self, coarse: Var, fine: Var) -> tuple[Var, Var]:
        """Give the fine map (N, C, h, w) with the points written over it, and edge logits (N, 1, H, W)."""
        n, c, height, width = coarse.shape
        h, w = fine.shape[2:]
        certainty = self.point_matcher(self.down_h(coarse), self.down_l(fine))

        average = resize(adaptive_avg_pool(certainty, self.edge_pool, self.pooling), (height, width))
        edge = self.edge_final(coarse - coarse * average)
        flat = fine.reshape(n, c, h * w)
        flows: list[tuple[Var, Var]] = []
        if self.num_edge_points:
            with jt.no_grad():
                points = top_points(edge, self.num_edge_points)  # (N, P)
            edge_coarse = gather_points(coarse.reshape(n, c, -1), points)
            edge_fine = sample_points(fine, (height, width), points)
            flows.append((_flow(edge_coarse, edge_fine), _fine_indices(points, (height, width), (h, w))))
        if self.salient_pool:
            maximum, points = adaptive_max_pool(certainty, self.salient_pool, self.pooling)
            weighted = coarse + resize(maximum, (height, width)) * coarse
            salient_coarse = gather_points(weighted.reshape(n, c, -1), points)
            target = _fine_indices(points, (height, width), (h, w))
            flows.append((_flow(salient_coarse, gather_points(flat, target)), target))
        for values, target in flows:
            flat = scatter_points(flat, values, target)
        return flat.reshape(n, c, h, w), edge


def _flow(coarse: Var, fine: Var) -> Var:
    """Fuse points (N, C, P) of both maps: each fine point receives all coarse points by softmax affinity."""
    affinity = nn.softmax(batched_matmul(fine.transpose(0, 2, 1), coarse), dim=2)  # (N, P, P), [fine, coarse]
    return batched_matmul(coarse, affinity.transpose(0, 2, 1)) + fine  # (N, C, P)


def _fine_indices(indices: Var, coarse: tuple[int, int], fine: tuple[int, int]) -> Var:
    """Flat positions (N, P) in the fine map of coarse cells (N, P)."""
    row, column = indices // coarse[1], indices % coarse[1]
    return row * fine[0] // coarse[0] * fine[1] + column * fine[1] // coarse[1]
