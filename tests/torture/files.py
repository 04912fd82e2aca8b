"""Damaged files: each kind of file that pfseg reads, made by the mutator from a whole one, given to what reads it.

A file is read, or refused by an error of one line that users can understand; nothing else counts as survived.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import rasterio.errors
import yaml
from weight_files import add_names, jittor_file, tensor, torch_stream, torch_zip

from pfseg.build_data import build_dataset
from pfseg.commands import convert, report, reproduce
from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.config.stored import expand_resume
from pfseg.data.base import SegmentationDataset, parse_classes
from pfseg.data.census import indexed_census
from pfseg.data.inputs import prepared_record
from pfseg.data.preparation.index import find_faults
from pfseg.errors import PfsegError
from pfseg.inference.onnx_network import OnnxNetwork
from pfseg.weights.reading import read_weights
from torture.mutations import damage, distort, written

STORED = Path(__file__).resolve().parents[1] / "compatibility" / "data"  # of an earlier revision
SECONDS, BYTES = 20, 4 << 30
FOREIGN = (b"Traceback", b"libpng", b"[ WARN", b"[ERROR", b"ERROR ", b"Warning ")  # lines that users should not see
CLASSES = [{"name": "ground", "color": "000000"}, {"name": "roof", "color": "FF0000"}]
OWN = ["dataset=own", "dataset.root=data", "gpus=0", "logger=none"]


def make_town(folder: Path) -> None:
    """A user's folder with a small one of everything."""
    shutil.copytree(STORED, folder, dirs_exist_ok=True)
    random = np.random.default_rng(0)
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / "data" / split / kind).mkdir(parents=True)
    image, mask = random.integers(0, 256, (40, 48, 3), np.uint8), random.integers(0, 2, (40, 48), np.uint8)
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(folder / "data" / "train" / "images" / f"{suffix}.{suffix}"), image)
        cv2.imwrite(str(folder / "data" / "train" / "masks" / f"{suffix}.png"), mask)
    shutil.copytree(folder / "data" / "train", folder / "data" / "val", dirs_exist_ok=True)
    for name, kind, bands in (("tif", "uint8", 3), ("deep", "uint16", 4), ("real", "float32", 3)):
        profile = {"driver": "GTiff", "width": 48, "height": 40, "count": bands, "dtype": kind, "compress": "deflate"}
        with rasterio.open(folder / "data" / "train" / "images" / f"{name}.tif", "w", **profile) as file:
            file.write(random.integers(0, 256, (bands, 40, 48)).astype(kind))
        with rasterio.open(folder / "data" / "train" / "masks" / f"{name}.tif", "w", **profile | {"count": 1}) as file:
            file.write(mask[None].astype(kind))
    (folder / "data" / "train.txt").write_text("train/images/png.png\ntrain/images/tif.tif\n")
    own = {"defaults": ["folder", "_self_"], "name": "own", "classes": CLASSES, "crop_size": 64, "eval_size": 64}
    (folder / "conf" / "dataset").mkdir()
    (folder / "conf" / "dataset" / "own.yaml").write_text(yaml.safe_dump(own))
    state = {f"layer{index}.weight": tensor(np.arange(12.0).reshape(3, 4)) for index in range(3)}
    plain = {name: value.args[0].values.reshape(3, 4) for name, value in state.items()}
    with pytest.MonkeyPatch.context() as patch:
        add_names(patch)
        (folder / "zip.pth").write_bytes(torch_zip(state))
        (folder / "stream.pth").write_bytes(torch_stream(state))
    (folder / "weights.pkl").write_bytes(jittor_file(plain))
    shutil.copy(folder / "run" / "checkpoints" / "last.safetensors", folder / "plain.safetensors")
    onnx.save(make_network(), folder / "model.onnx")


def make_network() -> onnx.ModelProto:
    """An exported network of one convolution."""
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight")
    nodes = [
        onnx.helper.make_node("Conv", ["image", "weight"], ["logits"]),
        onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image, probabilities = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, 16, 16])
        for name, channels in (("image", 3), ("probabilities", 2))
    )
    graph = onnx.helper.make_graph(nodes, "network", [image], [probabilities], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    own = {"bands": [0, 1, 2], "stretch": None, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": CLASSES, "pfseg": {}}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in own.items()})
    return model


@cache
def settings(command: str, *overrides: str) -> Any:
    return check(compose(command, overrides))


def data_set(*overrides: str) -> SegmentationDataset:
    return build_dataset(settings("train", *OWN, *overrides).dataset, "train")


def read_image(path: Path) -> None:
    dataset = data_set("dataset.bands=[0,1,2]", "dataset.stretch={range: [0, 255]}")
    index = next(place for place, file in enumerate(dataset.image_files()) if file.stem == path.stem)
    dataset.read(index)


def read_list(_: Path) -> None:
    assert len(data_set("dataset.splits={train: train.txt, val: val}"))


def read_index(path: Path) -> None:
    classes = parse_classes(json.loads((STORED / "patches" / "index.json").read_text())["classes"])
    indexed_census(classes, path.parent, "train")
    prepared_record(path.parent)
    check(compose("train", ["dataset=isaid", "dataset.root=patches", "gpus=0"]))
    list(find_faults(path.parent, None, workers=1))


def read_run(_: Path) -> None:
    for read in (
        lambda: report.run(settings("report", "runs=[run]", "html=page.html", "csv=page.csv")),
        lambda: reproduce.run(settings("reproduce", "run=run")),
        lambda: check(compose("train", expand_resume(["resume=run"]))),
    ):
        with suppress(PfsegError):  # others may still read it
            read()


def read_checkpoint(path: Path) -> None:
    with suppress(PfsegError):
        check(compose("evaluate", [f"checkpoint={path}", "trust=true", "dataset.root=patches", "gpus=0"]))
    convert.run(settings("convert", f"file={path}"))


def read_onnx(path: Path) -> None:
    OnnxNetwork(path)(np.zeros((1, 3, 16, 16), np.float32))


def read_settings(_: Path) -> None:
    check(compose("train", OWN))


def distort_checkpoint(data: bytes, random: Random) -> bytes:
    """The same checkpoint with other metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    meta = distort(json.loads(header["__metadata__"]["pfseg"]), random)
    header["__metadata__"]["pfseg"] = written(meta).decode()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def distort_tree(data: bytes, random: Random) -> bytes:
    return written(distort(yaml.safe_load(data), random))


def distort_row(data: bytes, random: Random) -> bytes:
    lines = data.splitlines()
    place = random.randrange(len(lines))
    lines[place] = written(distort(json.loads(lines[place]), random))
    return b"\n".join(lines) + b"\n"


# Files by pattern, with what reads them and, beside bytes, how their content is distorted.
Mutator = Callable[[bytes, Random], bytes]
KINDS: list[tuple[str, Callable[[Path], None], Mutator]] = [
    ("data/train/images/*", read_image, damage),
    ("data/train/masks/*", read_image, damage),
    ("data/train.txt", read_list, damage),
    ("patches/index.json", read_index, distort_tree),
    ("run/metrics.jsonl", read_run, distort_row),
    ("run/resolved.yaml", read_run, distort_tree),
    ("run/.hydra/*.yaml", read_run, distort_tree),
    ("run/*.json", read_run, distort_tree),
    ("run/checkpoints/last.safetensors", read_checkpoint, distort_checkpoint),
    ("conf/dataset/own.yaml", read_settings, distort_tree),
    ("*.pth", lambda path: read_weights(path) and None, damage),
    ("*.pkl", lambda path: read_weights(path) and None, damage),
    ("model.onnx", read_onnx, damage),
    ("plain.safetensors", lambda path: read_weights(path) and None, damage),
]


class TooLong(BaseException):
    """A file took more than `SECONDS`."""


@contextmanager
def bounded() -> Any:
    """Raise TooLong after so much time of the processor, or several times as much on the clock."""

    def late(*_: object) -> None:
        raise TooLong

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(10 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def survive(town: Path, seed: int) -> str | None:
    """Damage one file, read it, and put it back; returns what went wrong, None if nothing did."""
    random = Random(seed)
    pattern, read, mutate = KINDS[seed % len(KINDS)]
    path = random.choice(sorted(town.glob(pattern)))
    whole = path.read_bytes()
    path.write_bytes((damage if random.random() < 0.4 else mutate)(whole, random))
    fault = None
    try:
        with bounded():
            read(path)
    except PfsegError:
        pass
    except TooLong:
        fault = f"more than {SECONDS} s"
    except BaseException:
        fault = traceback.format_exc()
    if fault is None and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > BYTES:
        fault = f"more than {BYTES >> 30} GiB"
    if fault is not None:
        kept = Path(tempfile.gettempdir()) / f"torture-{seed}-{path.name}"
        shutil.copy(path, kept)
        fault = f"seed {seed}, {path.relative_to(town)} (kept as {kept}): {fault}"
    path.write_bytes(whole)
    return fault


def main() -> None:
    """`python -m torture.files <first seed> <number>`: damage so many files; prints what went wrong."""
    first, number = map(int, sys.argv[1:])
    town = Path(tempfile.mkdtemp())
    make_town(town)
    os.chdir(town)
    sys.path.insert(0, str(town))
    told = os.dup(1)
    noise = open(town / "noise", "w+b", buffering=0)
    for stream in (1, 2):
        os.dup2(noise.fileno(), stream)
    for seed in range(first, first + number):
        fault = survive(town, seed)
        sys.stdout.flush()
        sys.stderr.flush()
        text = (town / "noise").read_bytes()
        noise.truncate(0)
        noise.seek(0)
        strange = [line for line in text.splitlines() if line.startswith(FOREIGN)]
        if fault is None and strange:
            fault = f"seed {seed}: {text.decode(errors='replace')}"
        if fault is not None:
            os.write(told, f"{' | '.join(fault.splitlines())}\n".encode())
    shutil.rmtree(town)


if __name__ == "__main__":
    main()
