"""`pfseg preview`: training samples as the network would get them, as a picture and a table of classes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np

from pfseg.build_data import build_dataset, build_loader, display_positions, measure_colours, share_stretch
from pfseg.config.commands import Preview
from pfseg.data.census import Census
from pfseg.data.display import displayed
from pfseg.data.loader import TrainLoader
from pfseg.tracking import terminal
from pfseg.tracking.panels import save_preview
from pfseg.tracking.terminal import ConsoleProgress


def run(settings: Preview) -> None:
    """Write the picture `out` and show the shares of the classes in the first `samples` samples of a training."""
    console = terminal.console()
    with ConsoleProgress(console, "measuring images") as progress:
        share_stretch(settings.dataset, progress.show)
    dataset = build_dataset(settings.dataset, "train")
    with ConsoleProgress(console, "measuring bands") as progress:
        measured = settings.dataset.mean is None or settings.dataset.std is None
        measure_colours(settings.dataset, dataset, progress.show)
    mean, std = np.array(settings.dataset.mean), np.array(settings.dataset.std)
    if measured:
        terminal.line(console, f"measured: dataset.mean={mean.tolist()} dataset.std={std.tolist()}")
    positions = display_positions(settings.dataset)
    loader = build_loader(settings, dataset, rank=0, world_size=1, workers=0)
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]] = []
    census = Census(dataset.classes)
    for image, mask, edge, name in islice(_samples(loader), max(settings.samples, settings.rows)):
        census.add(mask)
        if len(rows) < settings.rows:
            visible = np.clip(np.rint(255 * (image.transpose(1, 2, 0) * std + mean)), 0, 255).astype(np.uint8)
            rows.append((displayed(visible, positions), mask, edge, name))
    for warning in loader.pop_warnings():
        terminal.line(console, f"warning: {warning}", "yellow")
    out = Path(settings.out)
    save_preview(out, rows, dataset.classes)
    pixels, samples, ignored = census.shares()
    terminal.line(console, f"{census.masks} training samples, drawn from {len(dataset)}:", "bold")
    console.print(terminal.class_table(dataset.classes, pixels.tolist(), samples.tolist(), "samples"))
    console.print(f"{out}: {len(rows)} of them, {100 * ignored:.3g} % of all pixels are ignored", soft_wrap=True)
    for warning in census.warnings():
        terminal.line(console, f"warning: {warning}", "yellow")


def _samples(loader: TrainLoader) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Samples one by one, epoch after epoch."""
    for epoch in count():
        for batch in loader.epoch(epoch):
            yield from zip(batch["image"], batch["mask"], batch["edge"], batch["name"], strict=True)
