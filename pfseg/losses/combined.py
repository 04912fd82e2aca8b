"""The loss of a whole network: one of its logits, further terms, and those of its edges, auxiliary heads and points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pfseg.losses.cross_entropy import CrossEntropy, OhemCrossEntropy, SoftCrossEntropy
from pfseg.losses.edges import EdgeLoss
from pfseg.losses.terms import Term
from pfseg.ops.sampling import nearest_labels
from pfseg.runtime import Var, jt

Segmentation = Callable[[Var, Var], Var]


class Output(Protocol):
    """What a network returns: see `pfseg.models.SegOutput`."""

    @property
    def logits(self) -> Var: ...  # noqa: D102
    @property
    def edge_logits(self) -> tuple[Var, ...]: ...  # noqa: D102
    @property
    def aux_logits(self) -> tuple[Var, ...]: ...  # noqa: D102
    @property
    def points(self) -> tuple[Var, Var] | None: ...  # noqa: D102


def _weighted(loss: Var, weight: float) -> Var:
    return loss if weight == 1 else loss * weight  # a launch less


class PFNetLoss:
    """Segmentation loss times `seg_weight`, plus what else the settings and the network's outputs ask for.

    That is `EdgeLoss` of each edge map times `edge_weight`, cross entropy of auxiliary logits times `aux_weight` and of
    points times `point_weight`, and the terms by their own weights; a weight of 0 leaves out. `segmentation` is called
    with (logits, mask) and has its own `global_reduction`; None stands for the cross entropy that `ohem`,
    `class_weights` and `label_smoothing` describe. `aux_min_kept` restricts auxiliary logits to their hard pixels.
    """

    def __init__(
        self,
        *,
        segmentation: Segmentation | None,
        ohem: bool,
        ohem_threshold: float,
        min_kept: int,
        seg_weight: float,
        edge: str,
        edge_weight: float,
        ignore_index: int,
        global_reduction: bool,
        class_weights: Sequence[float] | None,
        label_smoothing: float,
        terms: Mapping[str, Term],
        aux_weight: float,
        aux_min_kept: int | None,
        point_weight: float,
    ) -> None:
        options: dict[str, Any] = {"ignore_index": ignore_index, "global_reduction": global_reduction}
        self.plain = CrossEntropy(**options)
        self.hard = OhemCrossEntropy(ohem_threshold, min_kept, **options)
        self.soft: Segmentation | None = None
        if class_weights is not None or label_smoothing:
            self.soft = SoftCrossEntropy(class_weights, label_smoothing, **options)
        self.ohem = ohem
        self.segmentation = segmentation or self.soft or (self.hard if ohem else self.plain)
        self.edge = EdgeLoss(edge, global_reduction=global_reduction)
        self.aux = OhemCrossEntropy(ohem_threshold, aux_min_kept, **options) if aux_min_kept else self.plain
        self.terms, self.ignore_index = dict(terms), ignore_index
        self.edge_weight, self.seg_weight = edge_weight, seg_weight
        self.aux_weight, self.point_weight = aux_weight, point_weight

    def start_epoch(self, epoch: int) -> None:
        """Tell a loss that changes with training which epoch (from 0) begins."""
        if hasattr(self.segmentation, "epoch"):
            self.segmentation.epoch = epoch

    def start_step(self, step: int) -> None:
        """Tell the terms which update (from 1) begins."""
        for term in self.terms.values():
            term.step = step

    def __call__(self, output: Output, batch: Mapping[str, Var]) -> dict[str, Var]:
        """Terms of the loss, weights applied.

        They are `seg`, the further ones by their names, `edge_layer3`, `edge_layer2`, `edge_layer1` (coarse to fine),
        `aux`, or `aux_1` and on if there are several, and `point`. The batch has `mask` (N, H, W) int32 and, for
        edges, `edge` (N, H, W) float32.
        """
        terms = dict(self._of_logits(output.logits, batch["mask"]))
        if self.edge_weight:
            levels = range(len(output.edge_logits), 0, -1)
            for level, logits in zip(levels, output.edge_logits, strict=True):
                terms[f"edge_layer{level}"] = _weighted(self.edge(logits, batch["edge"]), self.edge_weight)
        if self.aux_weight:
            for number, logits in enumerate(output.aux_logits, 1):
                name = "aux" if len(output.aux_logits) == 1 else f"aux_{number}"
                terms[name] = _weighted(self.aux(logits, batch["mask"]), self.aux_weight)
        if self.point_weight and output.points is not None:
            terms["point"] = _weighted(self._point_loss(*output.points, batch["mask"]), self.point_weight)
        return terms

    def _of_logits(self, logits: Var, mask: Var) -> Iterator[tuple[str, Var]]:
        """The segmentation loss and the further terms, of all pixels or the hard ones."""
        mined = self.ohem and self.segmentation is self.soft
        hard = None
        if mined or any(term.ohem for term in self.terms.values()):
            hard = self.hard.hard_mask(logits, mask)
        if self.seg_weight:
            given = hard if mined and hard is not None else mask
            yield "seg", _weighted(self.segmentation(logits, given), self.seg_weight)
        for name, term in self.terms.items():
            given = hard if term.ohem and hard is not None else mask
            yield name, _weighted(term(logits, given), term.weight)

    def _point_loss(self, coordinates: Var, logits: Var, mask: Var) -> Var:
        """Cross entropy of points: coordinates (N, P, 2), logits (N, K, P)."""
        height, width = mask.shape[1:]
        size = jt.array(np.array([width, height], np.float32)).broadcast(coordinates, [0, 1])
        labels = nearest_labels(mask, coordinates * size - 0.5, self.ignore_index)
        return self.plain(logits.unsqueeze(3), labels.unsqueeze(2))
