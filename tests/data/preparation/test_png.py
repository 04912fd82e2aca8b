from __future__ import annotations

import cv2
import numpy as np
import pytest

from pfseg.data.preparation.png import encode_png


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (61, 83), (300, 256)])
def test_masks_come_back(shape: tuple[int, int], dtype: type, level: int):
    mask = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    back = cv2.imdecode(np.frombuffer(encode_png(mask, level), np.uint8), cv2.IMREAD_UNCHANGED)
    assert back.dtype == dtype and np.array_equal(back, mask)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (61, 83), (300, 256)])
def test_images_come_back(shape: tuple[int, int], level: int):
    large = np.random.default_rng(0).integers(0, 256, (shape[0] + 3, shape[1] + 5, 3), np.uint8)
    image = large[3:, 5:]  # a window of a scene: not contiguous
    back = cv2.imdecode(np.frombuffer(encode_png(image, level), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back[..., ::-1], image)


def test_real_looking_images_get_smaller_than_by_opencv():
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (400, 400, 3), np.uint8), (0, 0), 3)
    assert len(encode_png(smooth)) < len(cv2.imencode(".png", smooth)[1])
