"""PFNet R50 in PyTorch with pfseg's weights, for comparison only: `benchmarks/speed.py` starts it.

Run as `python torch_pfnet.py <folder>` where PyTorch is installed. Reads `weights.npz` and `image.npy` there, writes
`logits.npy` and then, for each line on its standard input, runs one forward pass and prints its seconds; with a
`mask.npy` a training step: forward in training mode, cross entropy, backward, SGD.

With `--serve`, on a GPU, for `benchmarks/gpu_checks.py`: each line asks in JSON for work (`train` with PFNet's whole
loss, `predict`), size, batch, precision and whether to compile, and is answered by milliseconds of a step and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class NormReLU(nn.BatchNorm2d):
    """BatchNorm and ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise."""
        return F.relu(super().forward(x), inplace=True)


class Bottleneck(nn.Module):
    """As in `pfseg.models.resnet`."""

    def __init__(self, c_in: int, c: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 1, bias=False), NormReLU(c)
        self.conv2 = nn.Conv2d(c, c, 3, stride, dilation, dilation, bias=False)
        self.bn2, self.conv3, self.bn3 = NormReLU(c), nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c)
        convolution = nn.Conv2d(c_in, 4 * c, 1, stride, bias=False)
        self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(4 * c)) if shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))) + shortcut, inplace=True)


def resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Bilinear, corners aligned."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class Matcher(nn.Module):
    """As in `pfseg.models.pointflow`."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.match_conv = nn.Conv2d(2 * m, 1, 3, padding=1)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Certainty."""
        return torch.sigmoid(self.match_conv(torch.cat([coarse, resize(fine, coarse.shape[2:])], 1)))


class PointFlow(nn.Module):
    """As in `pfseg.models.pointflow`."""

    def __init__(self, c: int = 256, m: int = 64, points: int = 128) -> None:
        super().__init__()
        self.points, self.point_matcher = points, Matcher(m)
        self.down_h, self.down_l = nn.Conv2d(c, m, 1), nn.Conv2d(c, m, 1)
        last = nn.Conv2d(c, 1, 3, padding=1, bias=False)
        self.edge_final = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), NormReLU(c), nn.Identity(), last)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Let semantics flow; gives the fine map and edge logits."""
        n, c, height, width = coarse.shape
        h, w = fine.shape[2:]
        certainty = self.point_matcher(self.down_h(coarse), self.down_l(fine))
        average = resize(F.adaptive_avg_pool2d(certainty, 9), coarse.shape[2:])
        edge = self.edge_final(coarse - coarse * average)
        edge_points = edge.reshape(n, -1).topk(min(self.points, height * width), 1).indices
        grid = torch.stack([(edge_points % width + 0.5) / width, (edge_points // width + 0.5) / height], 2) * 2 - 1
        edge_fine = F.grid_sample(fine, grid[:, :, None], align_corners=False)[..., 0]
        edge_coarse = coarse.reshape(n, c, -1).gather(2, edge_points[:, None].expand(n, c, -1))

        maximum, salient = F.adaptive_max_pool2d(certainty, 14, return_indices=True)
        salient = salient.reshape(n, -1)
        weighted = (coarse + resize(maximum, coarse.shape[2:]) * coarse).reshape(n, c, -1)
        salient_coarse = weighted.gather(2, salient[:, None].expand(n, c, -1))
        flat = fine.reshape(n, c, -1)

        def target(points: torch.Tensor) -> torch.Tensor:
            found = (points // width) * h // height * w + (points % width) * w // width
            return found[:, None].expand(n, c, -1)

        salient_fine = flat.gather(2, target(salient))
        flat = flat.scatter(2, target(edge_points), flow(edge_coarse, edge_fine).to(flat.dtype))
        flat = flat.scatter(2, target(salient), flow(salient_coarse, salient_fine).to(flat.dtype))
        return flat.reshape(n, c, h, w), edge


def flow(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Fuse points of both maps."""
    affinity = torch.softmax(fine.transpose(1, 2) @ coarse, 2)
    return coarse @ affinity.transpose(1, 2) + fine


class Pyramid(nn.Module):
    """Pyramid pooling."""

    def __init__(self, c_in: int, dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Conv2d(c_in, dim, 1, bias=False), nn.BatchNorm2d(dim))
            for size in (1, 2, 3, 6)
        )
        self.bottleneck = nn.Sequential(nn.Conv2d(c_in + 4 * dim, dim, 1, bias=False), NormReLU(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Context."""
        return self.bottleneck(torch.cat([*(resize(stage(x), x.shape[2:]) for stage in self.stages), x], 1))


class Head(nn.Module):
    """PFNet's head."""

    def __init__(self, channels: tuple[int, ...], classes: int, dim: int = 256) -> None:
        super().__init__()

        def conv(c_in: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, dim, 3, padding=1, bias=False), NormReLU(dim))

        self.ppm = Pyramid(channels[-1], dim)
        self.fpn_in = nn.ModuleList(nn.Sequential(nn.Conv2d(c, dim, 1), NormReLU(dim)) for c in channels[:-1])
        self.fpn_out = nn.ModuleList(nn.Sequential(conv(dim)) for _ in channels[:-1])
        self.fpn_out_align = nn.ModuleList(PointFlow(dim) for _ in channels[:-1])
        self.conv_last = nn.Sequential(conv(4 * dim), nn.Conv2d(dim, classes, 1))

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits at a quarter of the size, and edge logits, coarse to fine."""
        fused = self.ppm(features[-1])
        levels, edges = [fused], []
        for i in (2, 1, 0):
            lateral = self.fpn_in[i](features[i])
            flowed, edge = self.fpn_out_align[i](fused, lateral)
            fused = lateral + flowed
            levels.append(self.fpn_out[i](fused))
            edges.append(edge)
        finest = levels[-1].shape[2:]
        return self.conv_last(torch.cat([resize(level, finest) for level in reversed(levels)], 1)), edges


class PFNet(nn.Module):
    """PFNet R50, variant pytorch."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 3, 2, 1, bias=False), NormReLU(64), nn.Identity()]
        stem += [nn.Conv2d(64, 64, 3, 1, 1, bias=False), NormReLU(64), nn.Identity()]
        stem += [nn.Conv2d(64, 128, 3, 1, 1, bias=False)]
        self.layer0 = nn.Sequential(nn.Sequential(*stem), NormReLU(128), nn.Identity(), nn.MaxPool2d(3, 2, 1))
        c_in = 128
        for index, (c, count, dilation) in enumerate(((64, 3, 1), (128, 4, 1), (256, 6, 2), (512, 3, 4)), 1):
            blocks = [Bottleneck(c_in, c, 1 if index == 1 else 2, dilation, True)]
            blocks += [Bottleneck(4 * c, c, 1, dilation, False) for _ in range(count - 1)]
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
            c_in = 4 * c
        self.head = Head((256, 512, 1024, 2048), classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, H, W)."""
        return resize(self.head(self.features(image))[0], image.shape[2:])

    def with_edges(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (N, K, H, W) and edge logits (N, 1, H, W), coarse to fine."""
        logits, edges = self.head(self.features(image))
        return resize(logits, image.shape[2:]), [resize(edge, image.shape[2:]) for edge in edges]

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The backbone's maps, fine to coarse."""
        x, features = self.layer0(image), []
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
            features.append(x)
        return features


def load(folder: Path) -> PFNet:
    """The network with the weights of a folder, in evaluation mode."""
    weights = {key: torch.from_numpy(value) for key, value in np.load(folder / "weights.npz").items()}
    model = PFNet(weights["head.conv_last.1.bias"].shape[0]).eval()
    found = model.load_state_dict(weights, strict=False)
    lost = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    assert not lost and not found.unexpected_keys, (lost, found.unexpected_keys)
    return model


def main() -> None:
    """Serve forward passes, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--modes", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder
    model = load(folder)
    if arguments.serve:
        serve(model)
    elif arguments.modes:
        take_turns_in_modes(model, folder)
    else:
        take_turns(model, folder)


def take_turns(model: nn.Module, folder: Path, memory_format: torch.memory_format = torch.contiguous_format) -> None:
    """Run once for each line on the standard input, and say for how long."""
    image = torch.from_numpy(np.load(folder / "image.npy")).to(memory_format=memory_format)
    with torch.inference_mode():
        np.save(folder / "logits.npy", model(image).numpy())
    run = partial(infer, model, image)
    if (folder / "mask.npy").exists():
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        run = partial(train, model.train(), optimizer, image, torch.from_numpy(np.load(folder / "mask.npy")))
    sys.stdout.write(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        sys.stdout.write(f"{time.perf_counter() - started}\n")
        sys.stdout.flush()


def take_turns_in_modes(model: PFNet, folder: Path) -> None:
    """Run once for each mode on the standard input: fp32, channels_last, or bf16 (autocast, channels last)."""
    arrays = {path.stem: torch.from_numpy(np.load(path)) for path in folder.glob("*.npy")}
    if not (folder / "logits.npy").exists():
        with torch.inference_mode():
            np.save(folder / "logits.npy", model(arrays["image"]).numpy())
    sys.stdout.write(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    sys.stdout.flush()
    models = {torch.contiguous_format: model, torch.channels_last: copy.deepcopy(model)}
    for line in sys.stdin:
        mode = line.strip()
        form = torch.contiguous_format if mode == "fp32" else torch.channels_last
        own = models[form].to(memory_format=form)
        image = arrays["image"].to(memory_format=form)
        cast = torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16")
        started = time.perf_counter()
        if "mask" in arrays:
            train_fully(own, cast, image, arrays["mask"].long(), arrays["edge"])
        else:
            with torch.inference_mode(), cast:
                own(image)
        sys.stdout.write(f"{time.perf_counter() - started}\n")
        sys.stdout.flush()


def train_fully(
    model: PFNet, cast: torch.autocast, image: torch.Tensor, mask: torch.Tensor, edge: torch.Tensor
) -> None:
    """One training step with PFNet's loss; the optimizer is kept with the model."""
    if not model.training:
        model.optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    model.optimizer.zero_grad()
    with cast:
        logits, edges = model.with_edges(image)
    pfnet_loss(logits.float(), [e.float() for e in edges], mask, edge).backward()
    model.optimizer.step()


def infer(model: nn.Module, image: torch.Tensor) -> None:
    """One forward pass."""
    with torch.inference_mode():
        model(image)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, image: torch.Tensor, mask: torch.Tensor) -> None:
    """One training step."""
    optimizer.zero_grad()
    F.cross_entropy(model(image), mask).backward()
    optimizer.step()


def serve(model: PFNet) -> None:
    """Answer requests on a GPU (or, to try it out, on a CPU), in PyTorch's fastest ways of each precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    answer({"name": f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {name}"})
    compiled: dict[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(measure(model, request, device, compiled))
        except RuntimeError as error:  # out of memory, for one
            answer({"error": str(error).splitlines()[0][:200]})


def answer(values: dict[str, Any]) -> None:
    """Print a line of JSON."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def measure(
    model: PFNet, request: dict[str, Any], device: torch.device, compiled: dict[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Milliseconds of a step, three times the mean of up to 10, and MiB."""
    precision, training = request["precision"], request["work"] != "predict"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    cast = partial(torch.autocast, device.type, half) if half else contextlib.nullcontext
    size, count, classes = request["size"], request["batch"], model.head.conv_last[1].out_channels
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.standard_normal((count, 3, size, size)).astype(np.float32))
    image = image.to(device, memory_format=torch.channels_last)
    mask = np.kron(rng.integers(0, classes, (count, size // 32, size // 32)), np.ones((1, 32, 32), np.int64))
    mask = torch.from_numpy(mask).to(device)
    edge = torch.from_numpy((rng.random((count, size, size)) < 0.1).astype(np.float32)).to(device)
    host = [part.cpu().pin_memory() for part in (image, mask, edge)] if request["work"] == "feed" else []
    model.train(training)
    forward: Callable[..., Any] = model.with_edges if training else model.forward
    if request.get("compile"):
        forward = compiled.setdefault(request["work"], torch.compile(forward))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=device.type == "cuda"
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> None:
        nonlocal image, mask, edge
        if host:  # from the host each time, as in training
            image, mask, edge = (part.to(device, non_blocking=True) for part in host)
        optimizer.zero_grad()
        with cast():
            logits, edges = forward(image)
        loss = pfnet_loss(logits.float(), [e.float() for e in edges], mask, edge)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def predict() -> None:
        with torch.inference_mode(), cast():
            forward(image)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work = step if training else predict
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.mem_get_info()[0]
    work(), work(), wait()
    started = time.perf_counter()
    work(), wait()
    steps = max(1, min(10, int(request["seconds"] / 3 / (time.perf_counter() - started))))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(steps):
            work()
        wait()
        times.append(1000 * (time.perf_counter() - started) / steps)
    optimizer.zero_grad()
    result = {"ms": times, "mib": 0.0, "peak": 0.0}
    if device.type == "cuda":
        result["mib"] = (before - torch.cuda.mem_get_info()[0]) / 2**20
        result["peak"] = torch.cuda.max_memory_allocated() / 2**20
        del image, mask, edge
        torch.cuda.empty_cache()
    return result


def pfnet_loss(logits: torch.Tensor, edges: list[torch.Tensor], mask: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    """As `pfseg.losses.PFNetLoss` with the settings of conf/loss/pfnet.yaml."""
    loss = F.cross_entropy(logits, mask, ignore_index=255, reduction="none")
    with torch.no_grad():
        probability = torch.exp(-loss).flatten()
        limit = probability.kthvalue(min(10000, probability.numel())).values.clamp(min=0.7)
        kept = ((probability <= limit).view_as(loss) & (mask != 255)).float()
    total = (loss * kept).sum() / kept.sum().clamp(min=1)
    positive = edge.sum()
    weight = (edge * (edge.numel() - positive) + (1 - edge) * positive) / edge.numel()
    for level in edges:
        total = total + F.binary_cross_entropy_with_logits(level[:, 0], edge, weight)
    return total


if __name__ == "__main__":
    main()
