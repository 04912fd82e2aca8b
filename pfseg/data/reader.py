"""The one way from an image file to what networks see, for training, preparation, preview and prediction alike.

A file's bands are chosen, brought to 8 bits, and cleared where they hold no data:

* bands: those that are asked for; or else the bands tagged red, green and blue (a palette counts as these), in whatever
  order; one band (grey), three times; three bands in the file's order. For other files `bands` has to be given.
* 8 bits: those of 8 bits stay; `stretch` says what becomes black and white of others; without it, 16 bits without sign
  are divided by 256.
* no data: the file's own mask, or else transparency, or else the nodata value in all chosen bands; NaN and infinity.
  A fourth band that is tagged as alpha without being a mask (often infrared) is data, and so is one in `bands`.

Shapes: bands as they are stored (B, r, W), r rows; pixels (r, W, C) uint8; valid (r, W) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from pfseg.data.base import Note
from pfseg.data.region import Outline, Region
from pfseg.data.source import COLORS, naming
from pfseg.data.sources import open_source
from pfseg.errors import DataError

Stretch = Sequence[float] | Mapping[str, Any]  # percentiles of each image; {"range": [low, high] or one pair per band}
_SIDE = 1024  # percentiles are taken from so many rows and columns
_DARK = 24  # of 255: an image of 16 bits below this was stored with fewer bits than its type has
_BETWEEN = 0.05  # share of values that are neither 0 nor the largest, from which on an alpha band is no mask
_PIXELS = 1 << 22  # of a whole image that are read at a time
_CHECKED = 16  # images whose brightness is looked at


@dataclass
class ImageReader:
    """Reads images as `bands`, `stretch` and `contrast` say, and notes what it had to choose, each kind once.

    Args:
        bands: bands of the file, counted from 0, in this order; None: see the head of this module.
        stretch: percentiles [low, high] of each band of each image that become black and white beyond 8 bits; or
            {"range": [low, high]} or {"range": [[low, high], ...]}, a pair per band, the same for all images; None
            maps the full range of 16 bits.
        contrast: standard deviation of the grey levels of each image, see `even_contrast`; None for their own.
        nodata: whether pixels without data are told apart, and black; False leaves them as they are stored.
        region: what to read of each image, at which resolution; None for all as it is.
    """

    bands: Sequence[int] | None = None
    stretch: Stretch | None = None
    contrast: float | None = None
    nodata: bool = True
    region: Region | None = None
    _notes: list[Note] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _opened: int = 0

    @property
    def channels(self) -> int:
        """C."""
        return 3 if self.bands is None else len(self.bands)

    def open(self, path: PurePath, mask_shape: tuple[int, ...] | None = None) -> Image:
        """Open an image, to be read row by row; raises DataError, which names the file and what to do.

        An image is turned upright as its EXIF orientation says, unless its mask has the size of the stored image.
        """
        with naming(path):
            self._opened += 1
            image = Image(path, self, mask_shape, check=self.checks)
        for note in image.notes:
            self.note(note)
        return image

    def read(self, path: Path, mask_shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Read a whole image as (H, W, C) uint8, contiguous; raises DataError as `open` does."""
        with naming(path), self.open(path, mask_shape) as image:
            height, width = image.shape
            rows = height if image.whole else max(1, _PIXELS // width)
            if rows >= height:
                return image.read(0, height)[0]
            pixels = np.empty((height, width, self.channels), np.uint8)
            for top in range(0, height, rows):
                pixels[top : top + rows] = image.read(top, min(top + rows, height))[0]
            return pixels

    @property
    def checks(self) -> bool:
        """Whether the last image was one of the first, whose values are looked at for oddities."""
        return self._opened <= _CHECKED

    def note(self, note: Note) -> None:
        """Keep a note for the user, the first of its kind."""
        if note.kind not in self._known:
            self._known.add(note.kind)
            self._notes.append(note)

    def pop_notes(self) -> list[Note]:
        """Notes since the last call."""
        notes, self._notes = self._notes, []
        return notes


class Image(AbstractContextManager["Image"]):
    """An open image of `shape` (H, W) that gives rows of pixels; made by `ImageReader.open`.

    Only what lies within its `outline` is to be mapped, None for all of it.
    """

    def __init__(self, path: PurePath, how: ImageReader, mask_shape: tuple[int, ...] | None, *, check: bool) -> None:
        self.path, self.notes, self.channels, self._apart = path, list[Note](), how.channels, how.nodata
        self._file = open_source(path)
        self._turn(mask_shape)
        polygons: Sequence[dict[str, Any]] = ()
        if how.region is not None:
            part = how.region.part(path, self._file.shape, self._file.georeference)
            self._file.narrow(part)
            polygons = part.polygons
        self.shape, self.georeference = self._file.shape, self._file.georeference
        self.outline = Outline(polygons, self.georeference, self.shape[1]) if polygons and self.georeference else None
        kinds = self._file.kinds
        self._alpha = kinds.index("alpha") if "alpha" in kinds else None
        if self._alpha is not None and (self._alpha in (how.bands or ()) or not self._is_mask(self._alpha)):
            self._alpha = None
        self._bands = _choose_bands(path, kinds, how.bands, self._alpha)
        self._tables: list[np.ndarray] | None = None  # what becomes of each value of each band, up to 16 bits
        self._ranges: np.ndarray | None = None  # (B, 2): what becomes 0 and 255
        self._find_range(how.stretch, check)
        self._contrast: np.ndarray | None = None  # what becomes of each grey level (256,) uint8
        if how.contrast is not None:
            planes, mask = self._sample()
            valid = self._valid(planes, mask)
            pixels = self._to_pixels(planes)
            self._contrast = contrast_table(pixels if valid is None else pixels[valid], how.contrast)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def has_nodata(self) -> bool:
        """Whether any pixel may be without data."""
        file = self._file
        return self._apart and (
            file.masked or self._alpha is not None or file.dtype.kind == "f" or self._nodata() is not None
        )

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels of the rows `top` to `bottom`, and where they hold data, None for everywhere; raises DataError.

        Pixels without data are black.
        """
        planes, mask = self._rows(top, bottom)
        valid = self._valid(planes, mask) if self._apart else None
        pixels = self._to_pixels(planes)
        if self._contrast is not None:
            pixels = cv2.LUT(pixels, self._contrast)
        if valid is not None and not valid.all():
            pixels = np.where(valid[..., None], pixels, np.uint8(0)) if valid.any() else np.zeros_like(pixels)
        return pixels, valid

    @property
    def whole(self) -> bool:
        """Whether all of the file is in memory."""
        return self._file.whole

    @property
    def kind(self) -> tuple[str, int]:
        """Type and number of bands of the file."""
        return self._file.dtype.name, len(self._file.kinds)

    def bounds(self) -> list[list[float]] | None:
        """Percentiles 1 and 99 of each chosen band, of a thinned-out image; None for 8 bits, whose type says it all."""
        if self._file.dtype == np.uint8:
            return None
        return [[float(f"{value:.6g}") for value in percentiles_of(band, (1, 99))] for band in self.values(_SIDE)]

    def values(self, side: int) -> list[np.ndarray]:
        """The values of each chosen band that hold data, at most `side` * `side` of them."""
        return self._values(*self._sample(side))

    def _turn(self, mask_shape: tuple[int, ...] | None) -> None:
        file = self._file
        if file.orientation == 1:
            return
        if mask_shape != file.shape:
            file.turn()
        text = "is left as it is stored, as its mask is" if mask_shape == file.shape else "is turned upright"
        if mask_shape is None or mask_shape == file.shape:
            self._note("exif", f"has EXIF orientation {file.orientation}, and {text}")

    def _note(self, kind: str, text: str) -> None:
        self.notes.append(Note(f"{self.path} {text}; further images like it are not named", kind))

    def _is_mask(self, alpha: int) -> bool:
        """Whether a band that is tagged as alpha looks like one: hardly any values but 0 and the largest."""
        plane = self._file.sample([alpha], _SIDE)[0][0]
        between = float(((plane > 0) & (plane < plane.max())).mean())
        if between > _BETWEEN:
            self._note(
                "alpha",
                f"has a band {alpha} that is tagged as alpha, but {100 * between:.0f} % of its values are neither 0 "
                "nor the largest: it is taken for data (infrared, say), not for a mask; bands=[...] can use it",
            )
        return between <= _BETWEEN

    def _rows(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The chosen bands of some rows, and the file's mask or transparency."""
        if self._file.masked:
            return self._file.read(self._bands, top, bottom), self._file.mask(top, bottom)
        if self._alpha is None:
            return self._file.read(self._bands, top, bottom), None
        planes = self._file.read([*self._bands, self._alpha], top, bottom)
        return planes[:-1], planes[-1] > 0

    def _sample(self, side: int = _SIDE) -> tuple[np.ndarray, np.ndarray | None]:
        """The same of a thinned-out image."""
        if self._alpha is None:
            return self._file.sample(self._bands, side)
        planes, mask = self._file.sample([*self._bands, self._alpha], side)
        return planes[:-1], planes[-1] > 0 if mask is None else mask

    def _nodata(self) -> list[float | None] | None:
        """The nodata values of the chosen bands, where they count."""
        values = [self._file.nodata[band] for band in self._bands]
        if self._file.masked or self._alpha is not None or all(value is None for value in values):
            return None
        return values

    def _holds(self, planes: np.ndarray) -> np.ndarray | None:
        """Where each band holds a value (B, ...); None for everywhere."""
        holds = np.isfinite(planes) if self._file.dtype.kind == "f" else None
        if nodata := self._nodata():
            holds = np.ones(planes.shape, bool) if holds is None else holds
            for plane, value, hold in zip(planes, nodata, holds, strict=True):
                if value is not None and np.isfinite(value):
                    hold &= ~_equal(plane, value)
        return holds

    def _valid(self, planes: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
        """Where a pixel holds data: by the mask, and in any of the bands."""
        if (holds := self._holds(planes)) is None:
            return mask
        return np.asarray(holds.any(0) if mask is None else holds.any(0) & mask)

    def _values(self, planes: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
        """The values of each band, without those that mean "no data"."""
        holds = self._holds(planes)
        if holds is None and mask is None:
            return [plane.ravel() for plane in planes]
        where = np.broadcast_to(True if mask is None else mask, planes.shape)
        return [*map(lambda plane, hold: plane[hold], planes, where if holds is None else holds & where)]

    def _find_range(self, stretch: Stretch | None, check: bool) -> None:
        file, dtype = self._file, self._file.dtype
        if dtype == np.uint8 and not file.bits:
            return
        if file.bits:
            step = 255 // ((1 << file.bits) - 1)
            self._tables = [(np.arange(256) * step).clip(0, 255).astype(np.uint8)] * len(self._bands)
        elif dtype.kind == "c":
            raise DataError(f"{self.path} has complex values of {dtype}; expected real ones: export their magnitude")
        elif stretch is None and dtype == np.uint16:
            if check:
                self._warn_if_dark()
        elif stretch is None:
            seen = [*map(percentiles_of, self.values(_SIDE), [(0, 100)] * len(self._bands))]
            low, high = min(pair[0] for pair in seen), max(pair[1] for pair in seen)
            raise DataError(
                f"{self.path} has values of {dtype}, from {low:.6g} to {high:.6g}; expected 8 or 16 bits without sign, "
                "or what becomes black and white: set stretch=[2,98] for percentiles of each image, or "
                f"stretch={{range:[{low:.6g},{high:.6g}]}} (config: dataset.stretch)"
            )
        else:
            self._set_range(stretch)

    def _set_range(self, stretch: Stretch) -> None:
        if isinstance(stretch, Mapping):
            pairs = np.asarray(stretch["range"], np.float64)
            if pairs.ndim == 2 and len(pairs) != len(self._bands):
                raise DataError(
                    f"{self.path} is read by {len(self._bands)} bands, but stretch has {len(pairs)} ranges: give one, "
                    "or one per band (config: dataset.stretch)"
                )
            self._ranges = np.broadcast_to(pairs, (len(self._bands), 2))
        else:
            self._ranges = np.array([percentiles_of(values, stretch) for values in self.values(_SIDE)])
        if self._file.dtype in (np.uint16, np.int16):
            every = np.arange(1 << 16, dtype=np.uint16).view(self._file.dtype)
            self._tables = [_stretched(every, *pair) for pair in self._ranges]

    def _warn_if_dark(self) -> None:
        values = [values for values in self.values(_SIDE) if values.size]
        if values and (bright := max(float(percentiles_of(each, (99,))[0]) for each in values)) < _DARK * 257:
            self._note(
                "dark",
                f"has 16 bits, but 99 % of its values are at most {bright:.0f}, so that it is nearly black to the "
                f"network ({int(bright) // 256 + 1} of 256 grey levels); stretch=[2,98] uses its own range, and "
                f"stretch={{range:[0,{bright:.0f}]}} one range for all images (config: dataset.stretch)",
            )

    def _to_pixels(self, planes: np.ndarray) -> np.ndarray:
        """Bands (B, h, w) as they are stored, as (h, w, C) uint8, contiguous."""
        if self._tables is not None:
            grey = [
                cv2.LUT(plane, table) if plane.dtype == np.uint8 else table[plane.view(np.uint16)]
                for plane, table in zip(map(np.ascontiguousarray, planes), self._tables, strict=True)
            ]
        elif self._ranges is not None:
            grey = [_stretched(plane, *pair) for plane, pair in zip(planes, self._ranges, strict=True)]
        elif planes.dtype == np.uint16:
            grey = [(plane >> 8).astype(np.uint8) for plane in planes]
        elif len(planes) == self.channels and (pixels := np.moveaxis(planes, 0, 2)).flags.c_contiguous:
            return pixels
        else:
            grey = [*planes]
        grey *= self.channels // len(grey)
        return np.asarray(cv2.merge(grey)).reshape(*planes.shape[1:], self.channels)


def even_contrast(image: np.ndarray, deviation: float | None) -> np.ndarray:
    """Bring the standard deviation of an image (H, W, C) uint8 to `deviation` grey levels around its own mean.

    What is dark stays dark, but hazy images and brilliant ones come to look alike. The factor is from 0.5 to 2, so that
    an image of nothing but sand or sea is not blown up to noise. All channels together have one mean and one deviation.
    """
    return image if deviation is None else cv2.LUT(image, contrast_table(image, deviation))


def contrast_table(values: np.ndarray, deviation: float) -> np.ndarray:
    """What `even_contrast` makes of each grey level (256,) uint8, from the uint8 `values` of an image in any shape."""
    if not values.size:
        return np.arange(256, dtype=np.uint8)
    mean, own = (float(part[0, 0]) for part in cv2.meanStdDev(values.reshape(-1, 1)))
    factor = min(max(deviation / max(own, 1e-6), 0.5), 2.0)
    return ((np.arange(256) - mean) * factor + mean).round().clip(0, 255).astype(np.uint8)


def check_same_size(image: np.ndarray, mask: np.ndarray, image_name: Path | str, mask_name: Path | str) -> None:
    """Raise DataError if an image (H, W, C) and its mask (H, W) differ in size."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise DataError(
            f"{image_name} has {width}x{height} px but its mask {mask_name} {mask_width}x{mask_height}; "
            "both must have the same size"
        )


def _choose_bands(path: PurePath, kinds: Sequence[str], bands: Sequence[int] | None, alpha: int | None) -> list[int]:
    """Bands to read, counted from 0; one for grey and palettes."""
    count = len(kinds)
    what = f"{path} has {count} {'band' if count == 1 else 'bands'} ({', '.join(kinds)})"
    if bands is not None:
        if max(bands) >= count:
            raise DataError(
                f"{what}, but bands={list(bands)} asks for band {max(bands)}, counted from 0 (config: dataset.bands)"
            )
        return list(bands)
    if set(COLORS) <= set(kinds):
        return [kinds.index(color) for color in COLORS]
    shown = [index for index in range(count) if index != alpha and kinds[index] != "alpha"]
    if len(shown) in (1, 3):
        return shown
    raise DataError(
        f"{what}; say which are red, green and blue, counted from 0, such as bands=[2,1,0] (config: dataset.bands)"
    )


def _equal(plane: np.ndarray, value: float) -> np.ndarray:
    """Where a plane holds a nodata value, which files round to as many digits as they like."""
    if plane.dtype.kind != "f":
        return np.asarray(plane == value)
    close = np.abs(value) * 4e-7 if plane.dtype == np.float32 else 0.0
    return np.asarray(np.abs(plane.astype(np.float64) - value) <= close)


def percentiles_of(values: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Percentiles as `numpy.percentile` gives them, of any type without overflow; 0 and 1 of no values."""
    if not values.size:
        return [0.0, 1.0][: len(percents)]
    places = np.asarray(percents, np.float64) / 100 * (values.size - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, values.size - 1)
    ordered = np.partition(values, np.unique([below, above]))
    low, high = ordered[below].astype(np.float64), ordered[above].astype(np.float64)
    return [float(value) for value in low + (high - low) * (places - below)]


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values of any type as uint8: `low` becomes 0, `high` 255; NaN becomes 0."""
    scaled = (values.astype(np.float64) - low) * 255 / max(high - low, 1e-12)
    return np.asarray(np.nan_to_num(scaled.round().clip(0, 255)), np.uint8)
