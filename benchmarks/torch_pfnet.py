"""PFNet R50 in PyTorch with pfseg's weights, for comparison only: `benchmarks/speed.py` starts it.

Run as `python torch_pfnet.py <folder>` where PyTorch is installed. Reads `weights.npz` and `image.npy` there, writes
`logits.npy` and then, for each line on its standard input, runs one forward pass and prints its seconds; with a
`mask.npy` a training step: forward in training mode, cross entropy, backward, SGD.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

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

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Let semantics flow."""
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
        flat = flat.scatter(2, target(edge_points), flow(edge_coarse, edge_fine))
        return flat.scatter(2, target(salient), flow(salient_coarse, salient_fine)).reshape(n, c, h, w)


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

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits at a quarter of the size."""
        fused = self.ppm(features[-1])
        levels = [fused]
        for i in (2, 1, 0):
            lateral = self.fpn_in[i](features[i])
            fused = lateral + self.fpn_out_align[i](fused, lateral)
            levels.append(self.fpn_out[i](fused))
        return self.conv_last(torch.cat([resize(level, levels[-1].shape[2:]) for level in reversed(levels)], 1))


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
        x, features = self.layer0(image), []
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
            features.append(x)
        return resize(self.head(features), image.shape[2:])


def main() -> None:
    """Serve forward passes."""
    folder = Path(sys.argv[1])
    weights = {key: torch.from_numpy(value) for key, value in np.load(folder / "weights.npz").items()}
    model = PFNet(weights["head.conv_last.1.bias"].shape[0]).eval()
    found = model.load_state_dict(weights, strict=False)
    lost = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    assert not lost and not found.unexpected_keys, (lost, found.unexpected_keys)
    image = torch.from_numpy(np.load(folder / "image.npy"))
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


def infer(model: PFNet, image: torch.Tensor) -> None:
    """One forward pass."""
    with torch.inference_mode():
        model(image)


def train(model: PFNet, optimizer: torch.optim.Optimizer, image: torch.Tensor, mask: torch.Tensor) -> None:
    """One training step."""
    optimizer.zero_grad()
    F.cross_entropy(model(image), mask).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
