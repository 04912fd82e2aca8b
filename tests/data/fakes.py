"""Files of tiny data sets with the layout of real ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

CLASSES = [{"name": "roof", "color": "3C1098"}, {"name": "road", "color": [110, 193, 228]}]
COLORS = np.array([[0x3C, 0x10, 0x98], [110, 193, 228]], dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    """Write RGB or grey pixels in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert ok
    path.write_bytes(data.tobytes())
