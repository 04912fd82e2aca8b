"""Images as an exported network takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pfseg.data.inputs import spread
from pfseg.data.reader import ImageReader


def central_windows(
    files: Sequence[Path], reader: ImageReader, size: int, mean: Sequence[float], most: int
) -> Iterator[np.ndarray]:
    """The middle (1, C, size, size) float32 of at most `most` images, scaled to 0..1; what is missing is the mean.

    Raises:
        DataError: an image can't be read.
    """
    for path in spread(files, most):
        with reader.open(path) as image:
            height, width = image.shape
            top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
            pixels, _ = image.read(top, min(height, top + size))
            pixels = pixels[:, left : left + size]
        window = np.broadcast_to(np.asarray(mean, np.float32), (size, size, len(mean))).copy()
        window[: pixels.shape[0], : pixels.shape[1]] = pixels / np.float32(255)
        yield np.ascontiguousarray(window.transpose(2, 0, 1)[None])
