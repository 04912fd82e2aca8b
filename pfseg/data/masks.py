"""Reading masks: what their values or colours mean by the class table.

Single-channel masks hold ids: whole numbers of any type and depth, also as floats. A palette counts as colours, unless
the class table has none of them: then its values are ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from pfseg.data.base import IGNORE, ClassInfo, IgnoreEntry, class_ids, parse_color
from pfseg.data.raster import Raster
from pfseg.data.source import COLORS, naming
from pfseg.data.sources import GEOGRAPHIC, decode
from pfseg.errors import ConfigError, DataError

_UNKNOWN = 254
_IDS = 1 << 16  # ids are below
_BAND_PIXELS = 1 << 18  # are converted at a time, which fits a processor's cache


class MaskReader:
    """Reads masks of one class table by a table look-up.

    Raises:
        ConfigError: an entry of `ignore` is a class's own colour or id.
    """

    def __init__(self, classes: Sequence[ClassInfo], ignore: Sequence[IgnoreEntry] = ()) -> None:
        self.classes = tuple(classes)
        self.ids = {identity: label for label, identity in enumerate(class_ids(classes))}
        self.colors = {info.color: label for label, info in enumerate(classes)}
        for entry in ignore:
            if isinstance(entry, int):
                label = self.ids.setdefault(entry, IGNORE)
            else:
                label = self.colors.setdefault(parse_color(entry, where="config: dataset.ignore"), IGNORE)
            if label != IGNORE:
                name = self.classes[label].name
                raise ConfigError(f"{entry!r} of `ignore` is class {name}; drop either (config: dataset.ignore)")
        self.ids.setdefault(IGNORE, IGNORE)

    def key(self) -> object:
        """What the labels depend on besides the file, as JSON can hold it."""
        return sorted(self.ids.items()), sorted(self.colors.items())

    def read(self, path: Path, name: str) -> tuple[np.ndarray, str | None]:
        """Read one mask, which messages call `name`: single-channel ids, a palette PNG or RGB colours.

        Returns:
            (H, W) uint8 labels or 255, and a warning if colours outside the class table became 255.

        Raises:
            DataError: unreadable, or an id outside the class table.
        """
        mask, unknown = self.read_counted(path, name)
        if not unknown:
            return mask, None
        share, some = 100 * unknown.total() / mask.size, ", ".join(most_common(unknown))
        return mask, (
            f"{name}: {share:.3g} % of its pixels have colours outside the class table "
            f"({len(unknown)} in all, most often {some}) and are ignored (config: dataset.classes, dataset.ignore)"
        )

    def read_counted(self, path: Path, name: str) -> tuple[np.ndarray, Counter[int]]:
        """Read one mask as `read` does, and count the pixels of each colour 0xRRGGBB that the class table lacks."""
        with naming(name):
            if path.suffix.lower() in GEOGRAPHIC:
                return self._read_raster(path, name)
            pixels, header = decode(path)
            if header and header.palette and not self._knows(np.reshape(header.palette, (-1, 3))):
                return self._read_raster(path, name)
            if pixels.ndim == 3:
                return self._from_colors(self._checked(pixels, name))
            step = header.grey_step if header else 1
            return self._from_ids(pixels // step if step > 1 else pixels, name), Counter()

    def _read_raster(self, path: Path, name: str) -> tuple[np.ndarray, Counter[int]]:
        source = Raster(path)  # which leaves palettes as they are
        try:
            if source.palette is not None and not self._knows(source.palette):
                return self._from_ids(source.values(), name), Counter()
            every = range(source.shape[0])
            if len(source.kinds) <= 2:
                return self._from_ids(source.read([0], 0, len(every))[0], name, source.nodata[0]), Counter()
            tagged = set(COLORS) <= set(source.kinds)
            bands = [source.kinds.index(color) for color in COLORS] if tagged else [0, 1, 2]
            planes = source.read(bands, 0, len(every))
            return self._from_colors(self._checked(np.moveaxis(planes, 0, 2), name))
        finally:
            source.close()

    def _knows(self, palette: np.ndarray) -> bool:
        """Whether any colour of a palette (N, 3) is in the class table; if none is, its values are ids."""
        return not set(map(tuple, palette.tolist())).isdisjoint(self.colors)

    def _checked(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Colours as 8 bits per channel."""
        if pixels.dtype != np.uint8:
            if not ((pixels >= 0) & (pixels <= 255)).all() or (pixels.dtype.kind == "f" and (pixels % 1).any()):
                raise DataError(f"{name} has colours of {pixels.dtype} beyond 0..255: convert it to 8 bits per channel")
            pixels = pixels.astype(np.uint8)
        return pixels

    def _from_ids(self, values: np.ndarray, name: str, nodata: float | None = None) -> np.ndarray:
        """Labels of ids of any type; what holds no data (nodata, NaN) has no class, unless the table says otherwise."""
        if values.dtype.kind not in "iuf":
            raise DataError(f"{name} has values of {values.dtype}; expected class ids: whole numbers of any type")
        table = np.full(_IDS + 1, _UNKNOWN, dtype=np.uint8)  # the last entry is for all others
        if nodata is not None and 0 <= nodata < _IDS and nodata == int(nodata):
            table[int(nodata)] = IGNORE
        for identity, label in self.ids.items():
            if 0 <= identity < _IDS:
                table[identity] = label
        if values.dtype == np.uint8:
            mask = np.asarray(cv2.LUT(values, table[:256]))
        elif values.dtype == np.uint16:
            mask = table[values]
        else:
            mask = np.empty(values.shape, np.uint8)
            rows = max(1, _BAND_PIXELS // max(1, values.shape[1]))
            for top in range(0, len(values), rows):
                mask[top : top + rows] = self._look_up(values[top : top + rows], table, name, nodata)
        if (unknown := mask == _UNKNOWN).any():
            self._refuse(values[unknown].min(), unknown.mean(), name)
        return mask

    def _look_up(self, values: np.ndarray, table: np.ndarray, name: str, nodata: float | None) -> np.ndarray:
        """Labels of a few rows of ids of a wide or signed type, or of floats."""
        nothing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if nodata is not None and not 0 <= nodata < _IDS:
            nothing |= values == values.dtype.type(nodata)
        if further := [identity for identity in self.ids if not 0 <= identity < _IDS]:  # of `ignore`
            nothing |= np.isin(values, further)
        values = np.where(nothing, 0, values)
        if values.dtype.kind == "f" and (broken := values != np.floor(values)).any():
            raise DataError(
                f"{name} has values that are no whole numbers, such as {values[broken][0]:.6g} (of "
                f"{100 * broken.mean():.3g} % of some rows): it holds no class ids; export the classes themselves"
            )
        inside = (values >= 0) & (values < _IDS)
        labels = table[np.where(inside, values, _IDS).astype(np.int64)]
        labels[nothing] = IGNORE
        return labels

    def _refuse(self, value: float, share: float, name: str) -> None:
        known = ", ".join(
            f"{identity} {self.classes[label].name if label != IGNORE else 'ignore'}"
            for identity, label in sorted(self.ids.items())
        )
        raise DataError(
            f"{name} has the value {int(value)} (values outside the class table: {100 * share:.3g} % of its "
            f"pixels); the table has {known}; add a class with `id: {int(value)}` or list it under `ignore` "
            "(config: dataset.classes, dataset.ignore)"
        )

    def _from_colors(self, pixels: np.ndarray) -> tuple[np.ndarray, Counter[int]]:
        mask = np.empty(pixels.shape[:2], dtype=np.uint8)
        unknown: Counter[int] = Counter()
        rows = max(1, _BAND_PIXELS // pixels.shape[1])  # what lies between colours and labels takes 20 bytes a pixel
        for top in range(0, len(pixels), rows):
            codes, labels = _codes(pixels[top : top + rows]), mask[top : top + rows]
            labels[:] = self._color_table[codes]
            where = labels == _UNKNOWN
            if where.any():
                colors, counts = np.unique(codes[where], return_counts=True)
                unknown.update(dict(zip(colors.tolist(), counts.tolist(), strict=True)))
                labels[where] = IGNORE
        return mask, unknown

    @cached_property
    def _color_table(self) -> np.ndarray:
        table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
        for (red, green, blue), label in self.colors.items():
            table[red << 16 | green << 8 | blue] = label
        return table


def most_common(counts: Counter[int]) -> list[str]:
    """The three most frequent colours as RRGGBB, of equal ones the smallest first."""
    return [f"{color:06X}" for color in sorted(counts, key=lambda color: (-counts[color], color))[:3]]


def _codes(pixels: np.ndarray) -> np.ndarray:
    """Colours (r, W, 3 or 4) uint8 as the numbers 0xRRGGBB."""
    order = cv2.COLOR_RGB2BGRA if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    # B, G, R, A in memory are one little-endian number whose low 24 bits are 0xRRGGBB.
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), order).view("<u4")[..., 0] & 0xFFFFFF)
