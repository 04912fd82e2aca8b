"""Boundary scores of label maps: boundary F-score (as published with PFNet) and boundary IoU (Cheng et al., CVPR 2021).

All classes are processed at once: a map of bits has bit k set where a pixel lies on the boundary of the k-th class. A
disk is a union of horizontal runs, so that dilating by it takes a few ORs of shifted maps, and is exact.

Shapes: label maps (H, W) uint8, 255 without a class; T thresholds, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from pfseg.errors import DataError
from pfseg.metrics.confusion import check_labels, divide

THRESHOLDS = (0.0005, 0.001875, 0.00375, 0.005)  # tolerances of the published scores, of the image diagonal
_NONE = 255
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int64)
_WORDS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class BoundaryScores:
    """Boundary scores of many images.

    Boundary F-score of one image, class and threshold t, as in the published code: a pixel lies on the boundary of a
    class where the class's mask differs from that of its right, lower or lower right neighbour; in the last row only
    the right one counts, in the last column only the lower one, in the last corner none. Precision is the share of
    predicted boundary pixels with a true one at most ceil(t * diagonal) pixels away (Euclidean, between centres),
    recall the share of true ones with a predicted one as near, and F = 2PR / (P + R), 0 where nothing matches. Pixels
    that the mask ignores belong to no class in both maps: the outline of an ignored area counts as boundary where
    both hold the class beside it.

    A class that occurs in neither map of an image is not counted there (the published code gives it 1, which inflates
    the scores of rare classes); a class that occurs in only one map scores 0. Where both maps hold the class, but only
    one has a boundary of it (it may fill the image), the score is 0; where neither has, 1. The score of a class is the
    mean over the images that count it.

    Boundary IoU: IoU of the parts of both masks within max(1, round(ratio * diagonal)) pixels (in a square) of another
    class, an ignored pixel or the image's edge; intersections and unions are summed over the images, as for the IoU.

    Attributes:
        totals: (T + 3, K) float64, which may be summed over ranks: sums of the F-scores by threshold, number of images
            that count the class, intersections and unions in pixels.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, thresholds: Sequence[float] = THRESHOLDS, ratio: float = 0.02
    ) -> None:
        assert num_classes <= _NONE
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.thresholds, self.ratio = tuple(thresholds), ratio
        self.totals = np.zeros((len(self.thresholds) + 3, num_classes))

    def add(self, pred: np.ndarray, mask: np.ndarray) -> None:
        """Count an image by (H, W) integers in [0, K), in the mask also `ignore_index`; raises DataError for others."""
        if pred.shape != mask.shape or pred.ndim != 2:
            raise DataError(f"prediction of shape {pred.shape} and mask of shape {mask.shape} cannot be compared")
        ignored = mask == self.ignore_index
        maps = [self._labels("prediction", pred, ignored), self._labels("mask", mask, ignored)]
        diagonal = math.hypot(*mask.shape)
        radii = [math.ceil(threshold * diagonal) for threshold in self.thresholds]
        for label, scores in boundary_f(maps[0], maps[1], radii).items():
            self.totals[:-3, label] += scores
            self.totals[-3, label] += 1
        width = max(1, round(self.ratio * diagonal))
        bands = [_band(labels, width) for labels in maps]
        common = np.bincount(bands[0][bands[0] == bands[1]], minlength=_NONE + 1)
        areas = sum(np.bincount(band.ravel(), minlength=_NONE + 1) for band in bands)
        self.totals[-2] += common[: self.num_classes]
        self.totals[-1] += (areas - common)[: self.num_classes]

    def scores(self, class_names: Sequence[str], exclude: Collection[str] = ()) -> dict[str, float]:
        """Return the scores in percent; NaN for a class, or a mean, without an image that counts.

        These are `boundary_F@<threshold>` for each threshold and `boundary_IoU`, means over the classes but those of
        `exclude`, and those of each class under `<score>/<class>`.
        """
        *sums, images, common, union = self.totals
        values = {f"boundary_F@{t:g}": 100 * divide(row, images) for t, row in zip(self.thresholds, sums, strict=True)}
        values["boundary_IoU"] = 100 * divide(common, union)
        kept = [name not in exclude for name in class_names]
        counted = {key: row[kept][~np.isnan(row[kept])] for key, row in values.items()}
        means = {key: float(row.mean()) if row.size else math.nan for key, row in counted.items()}
        for key, row in values.items():
            means |= {f"{key}/{name}": float(value) for name, value in zip(class_names, row, strict=True)}
        return means

    def _labels(self, what: str, labels: np.ndarray, ignored: np.ndarray) -> np.ndarray:
        check_labels(what, labels[~ignored], self.num_classes, self.ignore_index)
        return np.where(ignored, np.uint8(_NONE), labels.astype(np.uint8))


def boundary_f(pred: np.ndarray, mask: np.ndarray, radii: Sequence[int]) -> dict[int, list[float]]:
    """F-scores (see `BoundaryScores`) in 0..1 of one image for each label that occurs, in the order of `radii`.

    Maps are (H, W) uint8, 255 for pixels without a class; `radii` tolerances in pixels, of at least 1.
    """
    present = [np.bincount(labels.ravel(), minlength=_NONE + 1)[:_NONE] > 0 for labels in (pred, mask)]
    scores = {int(label): [0.0] * len(radii) for label in np.flatnonzero(present[0] | present[1])}
    both = np.flatnonzero(present[0] & present[1])
    for start in range(0, len(both), 64):
        labels = both[start : start + 64]
        # In each pair the first is the prediction's, the second the truth's.
        edges = [_edge_bits(part, labels) for part in (pred, mask)]
        positions = [np.nonzero(edge) for edge in edges]
        bits = [edge[position] for edge, position in zip(edges, positions, strict=True)]
        sizes = [_count(part) for part in bits]
        dilated = [_dilate(edge, radii) for edge in edges]
        for index in range(len(radii)):
            near = [dilated[1 - side][index][positions[side]] for side in (0, 1)]
            matched = [_count(part & other) for part, other in zip(bits, near, strict=True)]
            for bit, label in enumerate(labels):
                scores[int(label)][index] = _f_score(*(int(part[bit]) for part in (*matched, *sizes)))
    return scores


def _f_score(matched_pred: int, matched_true: int, size_pred: int, size_true: int) -> float:
    """F-score of boundaries of so many pixels, of which so many have one of the other boundary near."""
    if size_pred == size_true == 0:
        return 1.0
    if matched_pred == 0 or matched_true == 0:
        return 0.0
    precision, recall = matched_pred / size_pred, matched_true / size_true
    return 2 * precision * recall / (precision + recall)


def _edge_bits(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Boundary bits (H, W) of the `chosen` labels, at most 64, as the smallest unsigned type that holds them."""
    word = _WORDS[max(8, 1 << (len(chosen) - 1).bit_length())]
    table = np.zeros(_NONE + 1, word)
    table[chosen] = 1 << np.arange(len(chosen), dtype=word)
    bits = table[labels]
    edge: np.ndarray = np.zeros_like(bits)
    inner = bits[:-1, :-1]
    edge[:-1, :-1] = (inner ^ bits[:-1, 1:]) | (inner ^ bits[1:, :-1]) | (inner ^ bits[1:, 1:])
    edge[-1, :-1] = bits[-1, :-1] ^ bits[-1, 1:]
    edge[:-1, -1] = bits[:-1, -1] ^ bits[1:, -1]
    return edge


def _dilate(bits: np.ndarray, radii: Sequence[int]) -> list[np.ndarray]:
    """Dilate (H, W) by the disk of each radius r: all offsets with dx**2 + dy**2 <= r**2."""
    height, width = bits.shape
    margin = max(radii)
    # Rows end in zeros and lie one after the other, so that any offset is a shift of one long row.
    stride = width + margin
    flat = np.zeros((height + 2 * margin, stride), bits.dtype)
    flat[margin : margin + height, :width] = bits
    first, last = margin * stride, (margin + height) * stride
    results = {radius: np.zeros(last - first, bits.dtype) for radius in radii}
    source = flat.ravel()
    run = source.copy()  # each pixel's neighbours within `half` to the left and right
    for half in range(margin + 1):
        if half:
            run[half:] |= source[:-half]
            run[:-half] |= source[half:]
        for radius, result in results.items():
            for dy in range(radius + 1):
                if math.isqrt(radius**2 - dy**2) == half:
                    for shift in {dy * stride, -dy * stride}:
                        result |= run[first + shift : last + shift]
    return [results[radius].reshape(height, stride)[:, :width] for radius in radii]


def _count(bits: np.ndarray) -> np.ndarray:
    """How many of `bits` (N,) have each bit set, from the lowest on."""
    octets = bits.view(np.uint8).reshape(len(bits), bits.itemsize)  # little-endian, as x86-64 is
    return np.concatenate([np.bincount(column, minlength=256) @ _BITS for column in octets.T])


def _band(labels: np.ndarray, width: int) -> np.ndarray:
    """The labels (H, W) of pixels within `width` of another label or the image's edge; 255 elsewhere."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    band = np.where(cv2.erode(labels, square) == cv2.dilate(labels, square), np.uint8(_NONE), labels)
    for side in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        band[side] = labels[side]
    return band
