"""Data preparation and loading, beside what the published tools do: `make bench-data`.

Prints three figures: cutting scenes into patches (the whole command but for its start), making one
training sample, and the memory of cutting a scene of 13,000 px a side. Both sides of a comparison take turns in one
run; medians are shown. Everything is made from random numbers: PNG can't compress it, and no file has to be had.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import published
from PIL import Image
from rich.console import Console
from rich.table import Table

from pfseg.commands import prepare
from pfseg.config.check import checked
from pfseg.config.commands import PrepareJob
from pfseg.config.compose import compose
from pfseg.data.base import parse_classes
from pfseg.data.edges import edge_map
from pfseg.data.normalise import Normalise
from pfseg.data.transforms import Augment

SCENES = {"P0001": (4000, 4000), "P0002": (2600, 3100), "P0003": (700, 1500)}
SIZE, STRIDE, CROP, LARGE = 800, 600, 896, 13_000


def make_scene(folder: Path, name: str, shape: tuple[int, int]) -> None:
    """Write a scene of random pixels and its mask of random class colours, in iSAID's layout."""
    rng = np.random.default_rng(len(name) + shape[0])
    images = folder / "train" / "images"
    images.mkdir(parents=True, exist_ok=True)
    table = np.array([info.color for info in parse_classes(isaid_classes())], dtype=np.uint8)
    cv2.imwrite(str(images / f"{name}.png"), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    labels = rng.integers(0, len(table), shape, dtype=np.uint8)
    cv2.imwrite(str(images / f"{name}_instance_color_RGB.png"), table[labels][..., ::-1])


def isaid_classes() -> list[dict[str, object]]:
    """The class table of conf/dataset/isaid.yaml."""
    return [dict(row) for row in compose("prepare", ["dataset=isaid", "src=.", "out=."]).dataset.classes]


def settings(src: Path, out: Path) -> list[str]:
    """The command's arguments."""
    size = [f"dataset.prepare.size={SIZE}", f"dataset.prepare.stride={STRIDE}"]
    return ["dataset=isaid", f"src={src}", f"out={out}", *size]


def cut_ours(src: Path, out: Path) -> None:
    """`pfseg prepare` in this process, its settings read before."""
    with contextlib.redirect_stdout(io.StringIO()):
        prepare.run(job(src, out))


@functools.cache
def job(src: Path, out: Path) -> PrepareJob:
    """The command's checked settings."""
    return checked(compose("prepare", settings(src, out)), PrepareJob)


def cut_published(src: Path, out: Path) -> None:
    """The published way, scene by scene."""
    out.mkdir()
    colors = [info.color for info in parse_classes(isaid_classes())]
    for name in SCENES:
        image = src / "train" / "images" / f"{name}.png"
        published.cut_scene(image, image.with_name(f"{name}_instance_color_RGB.png"), out, colors, SIZE, STRIDE)


def encode_only(src: Path, out: Path) -> None:
    """For scale: as many patches encoded and written, from memory, one after the other."""
    out.mkdir()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = rng.integers(0, 16, (SIZE, SIZE), dtype=np.uint8)
    for number in range(len(list((src.parent / "ours" / "train" / "images").iterdir()))):
        cv2.imwrite(str(out / f"{number}.png"), image)
        cv2.imwrite(str(out / f"{number}_mask.png"), mask)


def bench_cutting(folder: Path, rounds: int, table: Table) -> None:
    """Time both ways of cutting in turns."""
    src = folder / "isaid"
    for name, shape in SCENES.items():
        make_scene(src, name, shape)
    job(src, folder / "ours")
    ways = {"ours": cut_ours, "published": cut_published, "writing": encode_only}
    times = take_turns(
        {key: lambda way=way, key=key: way(src, folder / key) for key, way in ways.items()}, rounds, folder
    )
    ours, theirs, writing = (statistics.median(times[key]) for key in ways)
    patches = len(list((folder / "ours" / "train" / "images").iterdir()))
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["published"], strict=True))
    table.add_row(
        f"cut 3 scenes into {patches} patches", f"{theirs:.1f} s", f"{ours:.2f} s", f"{ratio:.1f} times faster"
    )
    table.add_row("  only writing as many patches by OpenCV, one core", f"{writing:.2f} s", "", "")


def bench_sample(rounds: int, table: Table) -> None:
    """Time one training sample on one core, both ways in turns."""
    cv2.setNumThreads(0)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    blocks = rng.integers(0, 16, (SIZE // 20, SIZE // 20), dtype=np.uint8)
    mask = cv2.resize(blocks, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    off = dict.fromkeys(("rotate", "brightness", "contrast", "saturation", "hue", "cutmix"), 0.0)
    augment = Augment(scale_range=None, hflip=0.5, vflip=0.5, rot90=True, blur=[0.15, 1.3], max_class_share=None, **off)
    normalise = Normalise([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    batch = np.empty((3, CROP, CROP), dtype=np.float32)
    pictures = Image.fromarray(image), Image.fromarray(mask)

    def ours() -> None:
        pixels, labels = augment(image, mask, rng, (CROP, CROP))
        edge_map(labels, rule="foreground", thickness=8)
        normalise(pixels, batch)

    def theirs() -> None:
        published.make_sample(*pictures, CROP)

    times = take_turns({"ours": ours, "published": theirs}, 20 * rounds)
    milliseconds = {key: 1000 * statistics.median(values) for key, values in times.items()}
    ratio = milliseconds["published"] / milliseconds["ours"]
    table.add_row(
        f"one training sample, {SIZE} to {CROP} px, with edges",
        f"{milliseconds['published']:.1f} ms",
        f"{milliseconds['ours']:.1f} ms",
        f"{ratio:.1f} times faster",
    )


def bench_memory(folder: Path, table: Table) -> None:
    """Measure the peak memory of the command on one large scene."""
    src, out = folder / "large", folder / "patches"
    make_scene(src, "P0004", (LARGE, LARGE))
    code = "import resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20)"
    run = [sys.executable, "-c", code, sys.executable, "-m", "pfseg", "prepare", *settings(src, out)]
    peak = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    table.add_row(f"peak memory for a scene of {LARGE:,} px a side", "", f"{peak:.2f} GiB", "")


def take_turns(ways: dict[str, Callable[[], None]], rounds: int, folder: Path | None = None) -> dict[str, list[float]]:
    """Seconds of each way in each round; results of the round before (`folder/<way>`) are removed outside the clock."""
    times: dict[str, list[float]] = {key: [] for key in ways}
    for _ in range(rounds):
        for key, way in ways.items():
            if folder is not None:
                shutil.rmtree(folder / key, ignore_errors=True)
            start = time.perf_counter()
            way()
            times[key].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Run the benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go for a while; 3 GB")
    arguments = parser.parse_args()
    table = Table("work", "published tools", "pfseg", "ratio", title=f"medians of {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench_cutting(Path(folder), arguments.rounds, table)
        bench_memory(Path(folder), table)
    bench_sample(arguments.rounds, table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
