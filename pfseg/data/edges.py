"""Edge targets of the network's edge maps, made from a label map.

Shapes: mask (H, W) uint8, labels or 255 (ignore); edge (H, W) uint8, 0 or 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from pfseg.data.base import IGNORE


def edge_map(mask: np.ndarray, *, rule: str = "class", thickness: int = 8) -> np.ndarray:
    """Band along the outlines of a label map.

    Args:
        mask: (H, W) uint8.
        rule: `class`: the outline between any two different labels; 255 has none. `foreground`: the published rule,
            the contours of all that is not 0 (255 included, the image's border too), drawn by OpenCV.
        thickness: width in px, at least 1.
    """
    edge = np.zeros(mask.shape, dtype=np.uint8)
    if rule == "foreground":
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(edge, contours, -1, (1,), thickness)
        return edge
    valid = mask != IGNORE
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        outline = (mask[first] != mask[second]) & valid[first] & valid[second]
        edge[second] |= outline
        if thickness > 1:
            edge[first] |= outline
    if thickness < 3:
        return edge
    # The outline is two pixels wide, one of each label; the disc adds what is missing.
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness - 1, thickness - 1))
    return np.asarray(cv2.dilate(edge, disc))
