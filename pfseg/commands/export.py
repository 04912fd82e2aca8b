"""`pfseg export`: a trained network as one ONNX file, or as a folder to share; docs/export.md says what is in them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console

from pfseg.build import Trained, build_evaluator, restore_model
from pfseg.build_data import build_dataset, follow_record
from pfseg.config.commands import Export
from pfseg.config.schema import Train
from pfseg.config.stored import training_settings
from pfseg.data.base import ClassInfo, parse_classes
from pfseg.data.reader import ImageReader
from pfseg.errors import CheckpointError, ConfigError, MissingPackage, PfsegError
from pfseg.export.folder import index_hash, shareable, write_folder
from pfseg.export.metadata import describe, ground_resolution
from pfseg.files import shown, write_atomic
from pfseg.metrics.confusion import scores
from pfseg.prediction.folder import find_images
from pfseg.tracking import terminal
from pfseg.tracking.terminal import ConsoleProgress
from pfseg.weights.checkpoint import Meta
from pfseg.weights.sources import push

if TYPE_CHECKING:
    from onnx import ModelProto

    from pfseg.inference.onnx_network import OnnxNetwork
    from pfseg.models.network import SegmentationNetwork

_SAME = 0.999  # least share of the pixels that have to get the same class
_CALIBRATED = 32  # images whose values int8 has to hold, at most


class _Source(NamedTuple):
    """What is exported."""

    checkpoint: Path
    stored: Train
    meta: Meta
    classes: tuple[ClassInfo, ...]
    mean: Sequence[float]
    std: Sequence[float]


def run(settings: Export) -> None:
    """Export a network, and compare what ONNX Runtime makes of it with what Jittor does."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingPackage("pfseg export", str(error.name), "onnx") from error
    checkpoint, console = Path(settings.checkpoint), terminal.console()
    stored = training_settings(checkpoint, settings.dataset.changes(), trust=settings.trust)
    data = stored.dataset
    classes, mean, std = parse_classes(data.classes), data.mean or (0.0,) * 3, data.std or (1.0,) * 3
    model, meta = restore_model(checkpoint, stored)
    model.eval()
    index = index_hash(meta)
    if settings.format == "folder":
        meta = shareable(meta)
    source = _Source(checkpoint, stored, meta, classes, mean, std)
    exported, rows = _export(settings, source, model)
    if settings.precision != "fp32":
        smaller = _smaller(settings, source, exported)
        if settings.dataset.root or stored.dataset.root is None:
            rows["mIoU"] = _loss(settings, source, {"fp32": exported, settings.precision: smaller}, console)
        exported = smaller
    out, content = Path(settings.out), exported.SerializeToString()
    file = out if settings.format == "onnx" else out / "model.onnx"
    if settings.format == "folder":
        write_folder(out, checkpoint, meta, classes, content, index)
    else:
        write_atomic(file, content)
    rows["file"] = f"{file.stat().st_size / 1e6:.1f} MB, {settings.precision}"
    table = terminal.table(title=shown(file))
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
    if settings.push:
        terminal.line(console, f"uploaded: {push(out, settings.push)}")
    terminal.line(console, f"map with it: pfseg predict checkpoint={shown(file)} input=<images> output=<folder>")


def _export(settings: Export, source: _Source, model: SegmentationNetwork) -> tuple[ModelProto, dict[str, str]]:
    """The network as ONNX, checked against itself in Jittor; and what to tell the user."""
    from pfseg.export.comparison import compare
    from pfseg.export.model import to_onnx
    from pfseg.inference.folding import JittorNetwork

    checkpoint, stored, meta, classes, mean, std = source
    size = _size(settings, stored, getattr(model, "min_size", 1))
    batch = np.random.default_rng(0).standard_normal((1, len(mean), size, size)).astype(np.float32)
    expected = JittorNetwork(model.predict)(batch)
    resolution = settings.ground_resolution or _resolution(stored)
    entries = describe(
        checkpoint, meta, classes, mean=mean, std=std, size=size, overlap=settings.overlap, resolution=resolution
    )
    made = to_onnx(model, size=size, mean=mean, std=std, dynamic_batch=settings.dynamic_batch, metadata=entries)
    agreement = compare(expected, _loaded(made)(batch))
    if agreement.same < _SAME:
        raise CheckpointError(
            f"{checkpoint}: ONNX Runtime and Jittor agree on {100 * agreement.same:.2f} % of the pixels of a random "
            "image only, so nothing was written; please report it"
        )
    return made, {
        "network": f"{stored.model.name}, {len(classes)} classes",
        "input": f"{'any number of images' if settings.dynamic_batch else '1 image'}, {len(mean)} x {size} x {size}",
        "ground resolution": f"{resolution:g} m" if resolution else "unknown: ground_resolution=<metres> tells it",
        "beside Jittor": f"logits within {agreement.deviation:.1e} of their range, same class at "
        f"{100 * agreement.same:.3f} % of the pixels",
    }


def _size(settings: Export, stored: Train, least: int) -> int:
    """Side of the network's input."""
    size = settings.size or min(stored.dataset.eval_size or stored.dataset.crop_size)
    if size < least:
        raise ConfigError(f"size={size} is too small for this network: it takes {least} px a side at least")
    return size


def _resolution(stored: Train) -> float | None:
    try:
        return ground_resolution(build_dataset(stored.dataset, "train").image_files())
    except PfsegError:  # the images of the training aren't here
        return None


def _loaded(model: ModelProto) -> OnnxNetwork:
    """The network in ONNX Runtime, which keeps no file open."""
    from pfseg.inference.onnx_network import OnnxNetwork

    with tempfile.TemporaryDirectory(prefix="pfseg-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model.SerializeToString())
        return OnnxNetwork(path)


def _smaller(settings: Export, source: _Source, model: ModelProto) -> ModelProto:
    """The network in fp16 or int8."""
    from pfseg.export.precision import to_half, to_integers
    from pfseg.export.windows import central_windows

    if settings.precision == "fp16":
        return to_half(model)
    data = source.stored.dataset
    record = source.meta.get("input") or data.reading
    reader = ImageReader(bands=record["bands"], stretch=record["stretch"], contrast=data.eval_contrast)
    files = find_images(str(settings.images), Path(settings.out))[1]
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return to_integers(model, central_windows([Path(file) for file in files], reader, size, source.mean, _CALIBRATED))


def _loss(settings: Export, source: _Source, models: Mapping[str, ModelProto], console: Console) -> str:
    """The mIoU of each model on the labelled images, in words."""
    stored = source.stored.model_copy(deep=True)
    follow_record(stored.dataset, source.meta.get("input"), settings.dataset.changes())
    dataset = build_dataset(stored.dataset, settings.split)
    found = {}
    for name, model in models.items():
        network = _loaded(model)
        with ConsoleProgress(console, f"scoring {name}") as bar:
            stored.dataset.eval_size = network.size, network.size
            trained = Trained(network, network.device, 1, network.size, network.size, source.meta)
            evaluator = build_evaluator(stored, dataset, trained)
            try:
                confusion = evaluator.run(network, bar.show).confusion
            finally:
                evaluator.loader.close()
            found[name] = scores(confusion, [info.name for info in source.classes], [])["mIoU"]
    (_, before), (name, after) = found.items()
    images = f"{len(dataset):,} images of {settings.split}"
    return f"{before:.2f} in fp32, {after:.2f} in {name}: {after - before:+.2f} on {images}"
