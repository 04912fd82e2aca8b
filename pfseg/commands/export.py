"""`pfseg export`: a trained network as one ONNX file; docs/export.md says what is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfseg.build import build_dataset, restore_model
from pfseg.config.commands import Export
from pfseg.config.data_settings import Dataset
from pfseg.config.schema import Train
from pfseg.config.stored import training_settings
from pfseg.data.base import parse_classes
from pfseg.errors import CheckpointError, ConfigError, PfsegError
from pfseg.files import shown, write_atomic
from pfseg.tracking import terminal

_SAME = 0.999  # least share of the pixels that have to get the same class


def run(settings: Export) -> None:
    """Export a network, and compare what ONNX Runtime makes of it with what Jittor does."""
    checkpoint, out = Path(settings.checkpoint), Path(settings.out)
    stored = training_settings(checkpoint, trust=settings.trust)
    data, console = stored.dataset, terminal.console()
    mean, std = data.mean or (0.0,) * 3, data.std or (1.0,) * 3
    classes = parse_classes(data.classes)
    try:
        from pfseg.export.metadata import describe
        from pfseg.export.model import to_onnx
        from pfseg.inference.onnx_network import OnnxNetwork
    except ImportError as error:
        raise ConfigError(f"pfseg export needs the package {error.name}: run `pip install 'pfseg[onnx]'`") from error
    from pfseg.export.comparison import compare
    from pfseg.inference.folding import JittorNetwork

    model, meta = restore_model(checkpoint, stored.model, len(classes), len(mean))
    model.eval()
    size = _size(settings, stored, getattr(model, "min_size", 1))
    batch = np.random.default_rng(0).standard_normal((1, len(mean), size, size)).astype(np.float32)
    expected = JittorNetwork(model.predict)(batch)
    resolution = settings.ground_resolution or _resolution(data)
    entries = describe(
        checkpoint, meta, classes, mean=mean, std=std, size=size, overlap=settings.overlap, resolution=resolution
    )
    exported = to_onnx(model, size=size, mean=mean, std=std, dynamic_batch=settings.dynamic_batch, metadata=entries)
    write_atomic(out, exported.SerializeToString())
    agreement = compare(expected, OnnxNetwork(out)(batch))
    if agreement.same < _SAME:
        out.unlink()
        raise CheckpointError(
            f"{checkpoint}: ONNX Runtime and Jittor agree on {100 * agreement.same:.2f} % of the pixels of a random "
            "image only, so nothing was written; please report it"
        )
    table = terminal.table(title=str(shown(out)))
    for name, text in (
        ("network", f"{stored.model.name}, {len(classes)} classes"),
        ("input", f"{'any number of images' if settings.dynamic_batch else '1 image'}, {len(mean)} x {size} x {size}"),
        ("ground resolution", f"{resolution:g} m" if resolution else "not known; ground_resolution=<metres> tells it"),
        ("size", f"{out.stat().st_size / 1e6:.1f} MB"),
        ("beside Jittor", f"logits within {agreement.deviation:.1e} of their range, "
                          f"same class at {100 * agreement.same:.3f} % of the pixels"),
    ):  # fmt: skip
        table.add_row(name, text)
    console.print(table)
    terminal.line(console, f"map with it: pfseg predict checkpoint={shown(out)} input=<images> output=<folder>")


def _size(settings: Export, stored: Train, least: int) -> int:
    """Side of the network's input."""
    size = settings.size or min(stored.dataset.eval_size or stored.dataset.crop_size)
    if size < least:
        raise ConfigError(f"size={size} is too small for this network: it takes {least} px a side at least")
    return size


def _resolution(data: Dataset) -> float | None:
    from pfseg.export.metadata import ground_resolution

    try:
        return ground_resolution(build_dataset(data, "train").image_files())
    except PfsegError:  # the images of the training aren't here
        return None
