"""From the settings of `pfseg predict` to networks and how they are applied to images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from pfseg.build import Trained, restore_network
from pfseg.build_data import display_positions
from pfseg.config.commands import Predict
from pfseg.config.data_settings import Dataset
from pfseg.config.schema import Train
from pfseg.config.stored import training_settings
from pfseg.data.base import ClassInfo, parse_classes
from pfseg.data.inputs import Record, misfit, patch_bands, patch_folder
from pfseg.data.normalise import Normalise
from pfseg.data.reader import Image, ImageReader
from pfseg.data.region import Region
from pfseg.errors import ConfigError
from pfseg.inference.sliding import SlidingWindows, WindowGrid
from pfseg.inference.views import Network, Views
from pfseg.weights.calibration import digest_of, load_temperature


class Predictor(NamedTuple):
    """Networks and how they are applied to images."""

    sliding: SlidingWindows
    normalise: Normalise
    classes: tuple[ClassInfo, ...]
    resize: tuple[int, int] | None  # (h, w) that images are resized to as a whole; None for windows
    reader: ImageReader
    display: list[int] | None  # see `pfseg.data.display`
    record: Record | None  # of `pfseg.data.inputs`; None for checkpoints that have none

    def open(self, path: PurePath) -> Image:
        """Open an image as those of the training were read; patches of a preparation as they are."""
        if self.record and isinstance(path, Path) and (folder := patch_folder(path)):
            return replace(self.reader, bands=patch_bands(folder, self.reader.bands), stretch=None).open(path)
        image = self.reader.open(path)
        if self.record and self.reader.checks and (note := misfit(image, self.record)):
            self.reader.note(note)
        return image


class _Member(NamedTuple):
    """A checkpoint and what was stored with it."""

    path: Path
    stored: Train
    classes: tuple[ClassInfo, ...]
    trained: Trained
    given: dict[str, Any]  # how its images are read: `bands` and `stretch`
    temperature: float

    @property
    def data(self) -> Dataset:
        """The data set that it was trained on."""
        return self.stored.dataset


def load_predictor(settings: Predict) -> Predictor:
    """Build the networks of the checkpoints and what belongs to them; the first says how images are read and cut.

    Raises:
        CheckpointError: no checkpoint, damaged, or of code that is not trusted.
        ConfigError: windows that a network doesn't take, or checkpoints that don't go together.
    """
    members = [_load(path, settings) for path in map(Path, settings.checkpoints)]
    for other in members[1:]:
        _check_alike(members[0], other)
    first = members[0]
    data, factor, trained = first.data, first.data.scale, [member.trained for member in members]
    only = next((each.size for each in trained if each.size), None)
    size = (only, only) if only else data.eval_size or data.crop_size
    window = settings.window or (round(size[0] / factor), round(size[1] / factor))
    for member in members:
        if member.trained.size:
            _check_size(settings, member.path, window, member.trained.size, factor)
    needs = max(each.output_stride for each in trained), max(each.min_size for each in trained)
    scales = [scale * (1.0 if settings.resize else factor) for scale in settings.scales]
    sliding = SlidingWindows(
        [_scaled(member, first) for member in members],
        len(first.classes),
        WindowGrid(settings.resize or window, settings.overlap, *needs),
        Views(scales, settings.flips, *needs),
        settings.batch_size,
        "disagreement" in settings.outputs,
    )
    if sliding.disagreement and len(members) * len(sliding.views) == 1:
        raise ConfigError(
            "outputs=[disagreement] compares several predictions: give checkpoint=[a,b,...], or flips or scales"
        )
    contrast = data.eval_contrast if settings.contrast is None else settings.contrast
    reader = ImageReader(
        bands=first.given["bands"] if settings.bands is None else settings.bands,
        stretch=first.given["stretch"] if settings.stretch is None else settings.stretch,
        contrast=None if contrast == "own" else contrast,
        nodata=settings.nodata,
        region=Region(settings.region, settings.scale_to) if settings.region or settings.scale_to else None,
    )
    if reader.channels != data.num_bands:
        raise ConfigError(
            f"bands={list(reader.bands or ())} names {reader.channels} bands, but the network takes {data.num_bands}"
        )
    normalise, display = Normalise(data.mean or (), data.std or ()), display_positions(data)
    record = trained[0].meta.get("input")
    return Predictor(sliding, normalise, first.classes, settings.resize, reader, display, record)


def checkpoint_names(settings: Predict) -> str:
    """The checkpoints, with a part of their checksums and their temperatures; raises CheckpointError."""
    names = []
    for path in map(Path, settings.checkpoints):
        digest, temperature = digest_of(path), _temperature(path, settings)
        softened = "" if temperature == 1 else f", temperature {temperature:.6g}"
        names.append(f"{path.name} (sha256 {digest[:16]}{softened})")
    return ", ".join(names)


def _temperature(path: Path, settings: Predict) -> float:
    return settings.temperature or load_temperature(path) or 1.0


def _load(path: Path, settings: Predict) -> _Member:
    changes = settings.dataset.changes()
    stored = training_settings(path, changes, trust=settings.trust)
    data, classes = stored.dataset, parse_classes(stored.dataset.classes)
    trained = restore_network(path, stored, settings.precision, fold=True)
    given = data.reading | (trained.meta.get("input") or {})
    given |= {key: value for key, value in changes.items() if key in given}
    return _Member(path, stored, classes, trained, given, _temperature(path, settings))


def _check_alike(first: _Member, other: _Member) -> None:
    """Raise ConfigError if the probabilities of two checkpoints can't be averaged."""

    def facts(member: _Member) -> dict[str, object]:
        read = {key: member.given[key] for key in ("bands", "stretch")}
        names = [info.name for info in member.classes]
        return {"classes": names, **read, "bands in all": member.data.num_bands, "scale": member.data.scale}

    theirs = facts(other)
    for key, value in facts(first).items():
        if _plain(value) != _plain(theirs[key]):
            raise ConfigError(
                f"checkpoint: {first.path} has {key}={_plain(value)}, {other.path} has {_plain(theirs[key])}; only "
                "networks of the same classes that are given the same pixels can be averaged"
            )


def _plain(value: object) -> object:
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _scaled(member: _Member, first: _Member) -> Network:
    """The network as a function of what the first one is given, with its temperature."""
    network, temperature = member.trained.network, np.float32(member.temperature)
    shift = factor = None
    if (member.data.mean, member.data.std) != (first.data.mean, first.data.std):
        (mean, std), (other_mean, other_std) = map(_statistics, (first, member))
        factor, shift = std / other_std, (mean - other_mean) / other_std
    if factor is None and temperature == 1:
        return network

    def scaled(batch: np.ndarray) -> np.ndarray:
        given = batch if factor is None else batch * factor + shift
        return network(given) / temperature

    return scaled


def _statistics(member: _Member) -> list[np.ndarray]:
    return [np.array(values, np.float32)[:, None, None] for values in (member.data.mean, member.data.std)]


def _check_size(settings: Predict, path: Path, window: tuple[int, int], size: int, factor: float) -> None:
    """Raise ConfigError if images would go into the network at another size than the only one that it takes."""
    given = {"resize": settings.resize} if settings.resize else {"window": window}
    ((key, sides),) = given.items()
    scale = 1.0 if settings.resize else factor
    if settings.scales != [1.0] or [round(side * scale) for side in sides] != [size, size]:
        raise ConfigError(
            f"{path} takes images of {size}x{size} px only: leave out scales and {key}, or export the checkpoint at "
            "another size (pfseg export size=...)"
        )
