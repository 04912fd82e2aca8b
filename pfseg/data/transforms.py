"""Joint augmentation of image and mask with OpenCV.

Shapes: image (H, W, C) uint8, of any number of bands; mask (H, W) uint8, labels or 255 (ignore).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from pfseg.data.base import IGNORE

_CROP_TRIES = 10
Pair = tuple[np.ndarray, np.ndarray]
Size = tuple[int, int]


@dataclass(kw_only=True)
class Augment:
    """Random changes of one training sample, see `pfseg settings augment`.

    The crop comes first, so that every other step works on `crop_size` pixels. All randomness comes from the
    generator that is passed in.
    """

    scale_range: tuple[float, float] | None
    hflip: float
    vflip: float
    rot90: bool  # of 180 degrees for crops that are not square
    rotate: float  # corners become ignore
    blur: tuple[float, float] | None
    brightness: float
    contrast: float  # around the mean grey
    saturation: float  # around the pixel's grey; of other than three bands around their mean
    hue: float  # of three bands alone
    max_class_share: float | None  # of the crop's labelled pixels; ten crops are tried
    cutmix: float  # the loader mixes by `paste`

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: Generator, crop_size: Size, centre: Size | None = None
    ) -> Pair:
        """Augment one sample: image (h, w, 3) uint8 and mask (h, w) uint8 of `crop_size`, contiguous.

        The crop contains `centre` (y, x), if any.
        """
        if self.scale_range is None:
            image, mask = resize(image, mask, crop_size)
        else:
            image, mask = self._crop(image, mask, rng, crop_size, centre)
        image, mask = self._turn(image, mask, rng)
        if self.rotate:
            image, mask = _rotate(image, mask, rng.uniform(-self.rotate, self.rotate))
        if self.blur is not None:
            sigma = rng.uniform(*self.blur)
            image = _by_fours(image, lambda part: cv2.GaussianBlur(part, (0, 0), sigma))
        image = self._recolour(image, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)

    def _crop(self, image: np.ndarray, mask: np.ndarray, rng: Generator, crop_size: Size, centre: Size | None) -> Pair:
        assert self.scale_range is not None
        scale = rng.uniform(*self.scale_range)
        # The window is cut out before it is scaled: the same pixels as the other way round, for less work.
        window = [max(1, round(side / scale)) for side in crop_size]
        tries = 1 if self.max_class_share is None else _CROP_TRIES
        for _ in range(tries):
            rows = _place(mask.shape[0], window[0], rng, centre and centre[0])
            columns = _place(mask.shape[1], window[1], rng, centre and centre[1])
            part = mask[rows, columns]
            if self.max_class_share is None or _largest_share(part) <= self.max_class_share:
                break
        height, width = (
            size if side == wanted else max(1, min(size, round(side * scale)))
            for side, wanted, size in zip(part.shape, window, crop_size, strict=True)
        )
        image, mask = resize(image[rows, columns], part, (height, width))
        return pad(image, mask, crop_size)

    def _turn(self, image: np.ndarray, mask: np.ndarray, rng: Generator) -> Pair:
        turns = 0
        if self.rot90:
            square = mask.shape[0] == mask.shape[1]
            turns = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
        # Quarter turns and flips together are a transposition or none, then a flip of the rows and of the columns.
        swap, rows, columns = turns in (1, 3), turns in (1, 2), turns in (2, 3)
        columns ^= bool(rng.random() < self.hflip)
        rows ^= bool(rng.random() < self.vflip)
        if swap:
            image, mask = _by_fours(image, cv2.transpose), cv2.transpose(mask)
        if rows or columns:
            code = -1 if rows and columns else int(columns)
            image, mask = _by_fours(image, lambda part: cv2.flip(part, code)), cv2.flip(mask, code)
        return image, mask

    def _recolour(self, image: np.ndarray, rng: Generator) -> np.ndarray:
        bands = image.shape[2]
        if self.brightness or self.contrast:
            bright, contrast = (1 + rng.uniform(-1, 1) * span for span in (self.brightness, self.contrast))
            grey = float(np.mean(cv2.mean(image)[:3])) if bands == 3 else float(image.mean())
            levels = ((np.arange(256) - grey) * contrast + grey) * bright
            table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
            image = _by_fours(image, lambda part: cv2.LUT(part, table))
        if self.saturation:
            factor = 1 + rng.uniform(-1, 1) * self.saturation
            if bands == 3:
                grey_image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                image = cv2.addWeighted(image, factor, grey_image, 1 - factor, 0)
            else:
                mean = image.mean(axis=2, keepdims=True)
                image = np.clip(np.rint(image * factor + mean * (1 - factor)), 0, 255).astype(np.uint8)
        if self.hue and bands == 3:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            turn = round(rng.uniform(-1, 1) * self.hue * 256)
            hsv[..., 0] = hsv[..., 0] + np.uint8(turn % 256)  # the circle has 256 steps: wrapping is right
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
        return image


def resize(image: np.ndarray, mask: np.ndarray, size: Size) -> Pair:
    """Resize to `size` (h, w): the image bicubically (by area where it shrinks), the mask to the nearest label.

    OpenCV's bicubic filter does not smooth before it shrinks, as that of Pillow in the published code does.
    """
    if mask.shape == size:
        return image, mask
    shrinks = size[0] < mask.shape[0] and size[1] < mask.shape[1]
    image = resized(image, size, cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return image, cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def resized(image: np.ndarray, size: Size, interpolation: int) -> np.ndarray:
    """Resize an image (h, w, C) of any number of bands to `size`."""
    return _by_fours(image, lambda part: cv2.resize(part, size[::-1], interpolation=interpolation))


def _by_fours(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Change an image of any number of bands by a function of OpenCV, most of which take four at most."""
    count = image.shape[2]
    if count in (3, 4):
        return change(image)
    parts = [change(np.ascontiguousarray(image[..., first : first + 4])) for first in range(0, count, 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def rescale(image: np.ndarray, mask: np.ndarray, factor: float) -> Pair:
    """Resize both sides by `factor`, see `resize`."""
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    return resize(image, mask, (height, width))


def pad(image: np.ndarray, mask: np.ndarray, size: Size) -> Pair:
    """Pad evenly on all sides to at least `size` (h, w): the image with black, the mask with 255."""
    down, right = (max(0, wanted - side) for wanted, side in zip(size, mask.shape, strict=True))
    if not down and not right:
        return image, mask
    sides = (down // 2, down - down // 2, right // 2, right - right // 2)
    image = _by_fours(image, lambda part: cv2.copyMakeBorder(part, *sides, cv2.BORDER_CONSTANT))
    return image, cv2.copyMakeBorder(mask, *sides, cv2.BORDER_CONSTANT, value=[IGNORE])


def paste(pair: Pair, other: Pair, rng: Generator) -> Pair:
    """Put a random rectangle of one sample into another of the same size (CutMix).

    Any share of the area up to half is as likely as any other, and so is any place inside; the rectangle has the
    sample's own shape.
    """
    image, mask = (array.copy() for array in pair)
    share = np.sqrt(rng.uniform(0, 0.5))  # of the sides
    place = tuple(_place(side, max(1, round(share * side)), rng, None) for side in mask.shape)
    image[place], mask[place] = other[0][place], other[1][place]
    return image, mask


def _rotate(image: np.ndarray, mask: np.ndarray, degrees: float) -> Pair:
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    image = _by_fours(image, lambda part: cv2.warpAffine(part, matrix, (width, height), flags=cv2.INTER_LINEAR))
    mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=[IGNORE])
    return image, mask


def _place(side: int, size: int, rng: Generator, point: int | None) -> slice:
    """Random window of `size` in `side` that contains `point`; all of it where the window is larger."""
    if size >= side:
        return slice(0, side)
    first, last = 0, side - size
    if point is not None:
        first, last = max(first, point - size + 1), min(last, point)
    start = int(rng.integers(first, last + 1))
    return slice(start, start + size)


def _largest_share(mask: np.ndarray) -> float:
    counts = np.bincount(mask.ravel(), minlength=256)
    counts[IGNORE] = 0
    return float(counts.max() / max(1, counts.sum()))
