"""What the published tools do to the data, written anew from their description, for comparison only.

Both follow the same protocol as pfseg; what makes them slow is kept: a mask is compared with one class colour after
the other, a scene lies in memory as float64 beside the original, images go back and forth between Pillow and NumPy.
"""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def cut_scene(
    image_path: Path, mask_path: Path, out: Path, colors: list[tuple[int, int, int]], size: int, stride: int
) -> int:
    """Convert a mask's colours to ids, cut scene and mask into patches; returns the number of patches."""
    pixels = cv2.cvtColor(cv2.imread(str(mask_path)), cv2.COLOR_BGR2RGB)
    labels = np.zeros(pixels.shape[:2], dtype=np.uint8)
    for label, color in enumerate(colors):
        labels[np.all(pixels == np.array(color, dtype=np.uint8), axis=-1)] = label
    converted = out / f"{mask_path.stem}_ids.png"
    cv2.imwrite(str(converted), labels)

    patches = 0
    for path, suffix in ((image_path, ""), (converted, "_instance_color_RGB")):
        scene = cv2.imread(str(path), cv2.IMREAD_COLOR if not suffix else cv2.IMREAD_GRAYSCALE).astype(np.float64)
        height, width = scene.shape[:2]
        for y in _starts(height, size, stride):
            for x in _starts(width, size, stride):
                patch = np.zeros((size, size, *scene.shape[2:]), dtype=np.float64)
                part = scene[y : y + size, x : x + size]
                patch[: part.shape[0], : part.shape[1]] = part
                cv2.imwrite(
                    str(out / f"{image_path.stem}_{y}_{y + size}_{x}_{x + size}{suffix}.png"), patch.astype(np.uint8)
                )
                patches += not suffix
    return patches


def make_sample(image: Image.Image, mask: Image.Image, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One training sample with the published augmentation: normalised image, labels, edges."""
    image, mask = (
        image.resize((size, size), Image.Resampling.BICUBIC),
        mask.resize((size, size), Image.Resampling.NEAREST),
    )
    for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if random.random() < 0.5:
            image, mask = image.transpose(turn), mask.transpose(turn)
    angle = 90 * random.randint(0, 3)
    image, mask = image.rotate(angle), mask.rotate(angle)
    sigma = random.uniform(0.15, 1.30)
    blurred = cv2.GaussianBlur(np.asarray(image).astype(np.float64) / 255, (0, 0), sigma) * 255
    image = Image.fromarray(blurred.astype(np.uint8))
    labels = np.array(mask, dtype=np.uint8)
    edge = np.zeros(labels.shape, dtype=np.uint8)
    contours, _ = cv2.findContours(labels, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(edge, contours, -1, (1,), 8)
    tensor = np.ascontiguousarray((np.asarray(image).astype(np.float32) / 255).transpose(2, 0, 1))
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        tensor[channel] = (tensor[channel] - mean) / std
    return tensor, labels.astype(np.int64), edge.astype(np.float32)


def _starts(length: int, size: int, stride: int) -> list[int]:
    if length <= size:
        return [0]
    starts = list(range(0, length - size, stride))
    return [*starts, length - size]
