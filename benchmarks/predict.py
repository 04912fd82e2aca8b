"""Peak memory and time of `pfseg predict` on GeoTIFFs of several sizes: `make bench-predict`.

The images are smooth noise, tiled and compressed; the network is a single convolution (or a checkpoint that is given),
so that what is measured is reading, blending and writing. Each prediction is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rich.console import Console
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
TILE = 512


def make_image(path: Path, side: int) -> None:
    """Write an RGB GeoTIFF of `side` px a side, tile by tile."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.standard_normal((2 * TILE, 2 * TILE, 3)).astype(np.float32), (0, 0), 12)
    pixels = np.clip(128 + texture * (50 / texture.std()), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    shape = {"height": side, "width": side, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    tiles = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate"}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}
    with rasterio.open(path, "w", "GTiff", **shape, **tiles, **place) as file:
        for top in range(0, side, TILE):
            for left in range(0, side, TILE):
                y, x = rng.integers(0, TILE, 2)
                window = rasterio.windows.Window(left, top, min(TILE, side - left), min(TILE, side - top))
                file.write(pixels[:, y : y + window.height, x : x + window.width], window=window)


def predict(image: Path, checkpoint: Path, out: Path, settings: list[str]) -> tuple[float, float]:
    """Run the command; returns seconds and the peak memory in GiB."""
    given = [f"checkpoint={checkpoint}", f"input={image}", f"output={out}", "trust=true", *settings]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    code = "import resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20)"
    command = [sys.executable, "-c", code, sys.executable, "-m", "pfseg", "predict", *given]
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--checkpoint", type=Path, help="instead of the single convolution")
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    parser.add_argument("settings", nargs="*", default=["window=512"], help="of pfseg predict")
    arguments = parser.parse_args()
    table = Table("RGB GeoTIFF", "time", "speed", "peak memory", title=Text(" ".join(arguments.settings)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from tiny_network import make_checkpoint

            classes = [{"name": f"class {k}", "color": [40 * k, 0, 0]} for k in range(6)]
            checkpoint = make_checkpoint(folder / "net.safetensors", side=5, classes=classes)
        for side in arguments.sides:
            image = folder / f"{side}.tif"
            make_image(image, side)
            seconds, peak = predict(image, checkpoint, folder / "out", arguments.settings)
            speed = f"{side * side / seconds / 1e6:.1f} Mpx/s"
            table.add_row(f"{side:,} x {side:,} px", f"{seconds:.0f} s", speed, f"{peak:.2f} GiB")
            image.unlink()
    Console().print(table)


if __name__ == "__main__":
    main()
