"""`pfseg preview`: training samples as the network would get them, as a picture and a table of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.text import Text

from pfseg.build import build_dataset, build_loader, share_stretch
from pfseg.config.commands import Preview
from pfseg.data.loader import TrainLoader
from pfseg.tracking import terminal
from pfseg.tracking.panels import save_preview
from pfseg.tracking.terminal import ConsoleProgress


class Shares(NamedTuple):
    """How often each class comes up."""

    pixels: np.ndarray  # (K,) share of the labelled pixels
    samples: np.ndarray  # (K,) share of the samples that hold any of the class
    ignored: float  # share of all pixels without a class


def run(settings: Preview) -> None:
    """Write the picture `out` and show the shares of the classes in the first `samples` samples of a training."""
    console = terminal.console()
    with ConsoleProgress(console, "measuring images") as progress:
        share_stretch(settings.dataset, progress.show)
    dataset = build_dataset(settings.dataset, "train")
    loader = build_loader(settings, dataset, rank=0, world_size=1, workers=0)
    mean, std = np.array(settings.dataset.mean), np.array(settings.dataset.std)
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]] = []
    masks = []
    for image, mask, edge, name in islice(_samples(loader), max(settings.samples, settings.rows)):
        masks.append(mask.astype(np.uint8))
        if len(rows) < settings.rows:
            visible = np.clip(np.rint(255 * (image.transpose(1, 2, 0) * std + mean)), 0, 255).astype(np.uint8)
            rows.append((visible, mask, edge, name))
    for warning in loader.pop_warnings():
        terminal.line(console, f"warning: {warning}", "yellow")
    out = Path(settings.out)
    save_preview(out, rows, dataset.classes)
    found = class_shares(masks, dataset.num_classes)
    shares = ("% of pixels", "in % of samples")
    title = f"{len(masks)} training samples, drawn from {len(dataset)}"
    table = terminal.table("class", *shares, numbers=shares, title=title)
    for info, pixels, samples in zip(dataset.classes, found.pixels, found.samples, strict=True):
        label = Text("■ ", style=info.hex_color) + Text(info.name, style="default")
        table.add_row(label, f"{100 * pixels:.2f}", f"{100 * samples:.0f}")
    console.print(table)
    console.print(f"{out}: {len(rows)} of them, {100 * found.ignored:.2g} % of all pixels are ignored", soft_wrap=True)


def class_shares(masks: Sequence[np.ndarray], num_classes: int) -> Shares:
    """Count the labels 0 to K - 1 of masks (H, W) uint8; any other is ignored."""
    counts = np.array([np.bincount(mask.ravel(), minlength=256)[:num_classes] for mask in masks])
    labelled = counts.sum()
    pixels = sum(mask.size for mask in masks)
    return Shares(counts.sum(axis=0) / max(1, labelled), (counts > 0).mean(axis=0), float(1 - labelled / pixels))


def _samples(loader: TrainLoader) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Samples one by one, epoch after epoch."""
    for epoch in count():
        for batch in loader.epoch(epoch):
            yield from zip(batch["image"], batch["mask"], batch["edge"], batch["name"], strict=True)
