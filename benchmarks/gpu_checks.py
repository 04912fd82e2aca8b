"""The checks of `gpu_check.py`: `python gpu_checks.py <check>` prints rows as JSON lines."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import golden
import numpy as np

from pfseg import create_model
from pfseg.config import run_settings
from pfseg.engine import nccl
from pfseg.engine.optimizer import build_optimizer
from pfseg.files import program
from pfseg.losses import PFNetLoss
from pfseg.ops import kernels
from pfseg.ops.batchnorm import BatchNorm2d
from pfseg.ops.convolution import Conv2d
from pfseg.runtime import jt

ROOT = Path(__file__).parent.parent
PRECISIONS = ("bf16", "tf32", "fp16", "fp32")
# Largest difference, relative to the largest value.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2, "fp16": 5e-3}


class Check:
    """What a check knows and how it reports."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.pretend: bool = arguments.pretend
        self.out: Path = arguments.out
        self.torch: str = arguments.torch
        self._end = time.monotonic() + arguments.seconds

    def left(self) -> float:
        """Seconds until this process is ended."""
        return self._end - time.monotonic()

    def row(self, name: str, value: object, passed: bool | None = None, **more: object) -> None:
        """Report a result at once."""
        row = {"name": name, "value": value, "passed": None if self.pretend else passed, **more}
        sys.stdout.write(json.dumps({"row": row}) + "\n")
        sys.stdout.flush()

    def difference(self, name: str, error: float, tolerance: float) -> None:
        """Report a deviation."""
        self.row(name, f"{error:.1e}, at most {tolerance:.0e}", bool(error < tolerance), error=float(error))

    def guarded(self, name: str, work: Callable[[], None]) -> None:
        """Run a part whose failure doesn't end the check."""
        try:
            work()
        except Exception as error:
            self.row(name, f"{type(error).__name__}: {str(error)[-700:]}", False)


def start(check: Check) -> None:
    """Versions, the card, the libraries that are loaded, and how often a compiler ran."""
    check.row("capabilities", list(jt.flags.cuda_archs), True)
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    programs = {"card": ["nvidia-smi", query, "--format=csv,noheader"], "nvcc": [jt.flags.nvcc_path, "--version"]}
    for name, command in programs.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            check.row(name, done.stdout.strip().splitlines()[-1])
        except (OSError, IndexError, subprocess.TimeoutExpired) as error:
            check.row(name, repr(error))
    for name in ("jittor", "numpy"):
        check.row(name, importlib.metadata.version(name))
    library = ctypes.CDLL(None)
    library.cudnnGetVersion.restype = ctypes.c_size_t
    check.row("cuDNN", library.cudnnGetVersion())
    extern = jt.compile_extern
    for name in ("cudnn", "cublas", "curand", "cub"):
        check.row(f"{name} loaded", getattr(extern, name) is not None, getattr(extern, name) is not None)
    loaded = sorted({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libcud" in line})
    check.row("libraries", " ".join(loaded))
    started = time.monotonic()
    value = float((jt.ones((3, 5)) * 2).sum().item())
    check.row("sum of 15 twos", value, value == 30)
    check.row("first operator, seconds", round(time.monotonic() - started, 2))
    started = time.monotonic()
    x = jt.array(np.ones((1, 16, 8, 8), np.float32))
    y = Conv2d(16, 16, 1, bias=False)(x).numpy()
    check.row("first own kernel, seconds", round(time.monotonic() - started, 2), bool(np.isfinite(y).all()))
    made = [path for path in Path(jt.flags.cache_path).rglob("*.so") if path.stat().st_mtime > time.time() - 600]
    check.row("libraries compiled in the last ten minutes", len(made), None)


def convolutions(check: Check) -> None:
    """Forward, and the gradients of x, weight and bias, against sums in float64."""
    rng = np.random.default_rng(0)
    cases = [  # C, K, kernel, stride, padding, dilation, bias, size
        (64, 64, 3, 1, 1, 1, False, (17, 19)),
        (64, 256, 1, 1, 0, 1, False, (16, 16)),
        (3, 64, 3, 2, 1, 1, False, (33, 31)),
        (3, 64, 7, 2, 3, 1, False, (33, 31)),
        (256, 128, 1, 2, 0, 1, False, (14, 14)),
        (128, 128, 3, 2, 1, 1, False, (15, 15)),
        (64, 64, 3, 1, 2, 2, False, (16, 12)),
        (32, 48, 3, 1, 4, 4, False, (16, 20)),
        (26, 26, 3, 1, 1, 1, False, (15, 13)),
        (26, 52, 3, 2, 1, 1, False, (15, 13)),
        (128, 1, 3, 1, 1, 1, True, (14, 14)),
        (256, 16, 1, 1, 0, 1, True, (14, 14)),
        (256, 1, 3, 1, 1, 1, False, (7, 9)),
    ]
    for case, precision in product(cases, PRECISIONS):
        kernels.set_precision(precision)
        check.guarded(
            f"{precision} {case}", lambda case=case, precision=precision: _convolution(check, rng, case, precision)
        )


def _convolution(check: Check, rng: np.random.Generator, case: tuple, precision: str) -> None:
    c, k, kernel, stride, padding, dilation, bias, size = case
    layer = Conv2d(c, k, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    x = rng.standard_normal((2, c, *size)).astype(np.float32)
    weight = rng.standard_normal(layer.weight.shape).astype(np.float32) / np.float32(np.sqrt(c * kernel * kernel))
    layer.weight.assign(weight)
    var = jt.array(x)
    y = layer(var)
    upstream = rng.standard_normal(tuple(y.shape)).astype(np.float32)
    wanted = [var, layer.weight, *([layer.bias] if bias else [])]
    got = [y, *jt.grad((y * jt.array(upstream)).sum(), wanted)]
    got = [v.numpy().astype(np.float64) for v in got]
    x, weight, upstream = (a.astype(np.float64) for a in (x, weight, upstream))
    n, (h, w) = 2, upstream.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    expected_y, expected_x, expected_weight = np.zeros((n, k, h, w)), np.zeros_like(padded), np.zeros_like(weight)
    for i, j in product(range(kernel), range(kernel)):
        rows = slice(i * dilation, i * dilation + (h - 1) * stride + 1, stride)
        columns = slice(j * dilation, j * dilation + (w - 1) * stride + 1, stride)
        part = padded[:, :, rows, columns]
        expected_y += np.einsum("nchw,kc->nkhw", part, weight[:, :, i, j], optimize=True)
        expected_x[:, :, rows, columns] += np.einsum("nkhw,kc->nchw", upstream, weight[:, :, i, j], optimize=True)
        expected_weight[:, :, i, j] = np.einsum("nchw,nkhw->kc", part, upstream, optimize=True)
    if bias:
        expected_y += layer.bias.numpy().astype(np.float64).reshape(1, k, 1, 1)
    cut = slice(padding, -padding or None)
    expected = [expected_y, expected_x[:, :, cut, cut], expected_weight, *([upstream.sum((0, 2, 3))] if bias else [])]
    errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, expected, strict=True)]
    name = f"{precision} {c}->{k} {kernel}x{kernel} stride {stride} dilation {dilation}"
    text = ", ".join(f"{part} {error:.1e}" for part, error in zip("yxwb", errors, strict=False))
    check.row(
        name, f"{text}; at most {TOLERANCE[precision]:.0e}", max(errors) < TOLERANCE[precision], error=max(errors)
    )


def operators(check: Check) -> None:
    """The tests of each own kernel, which compare with the processor's operators and with stored values."""
    files = sorted((ROOT / "tests" / "ops" / "cuda").glob("test_*.py"))
    with ThreadPoolExecutor(1 if check.pretend else 4) as pool:
        list(pool.map(lambda path: _tests(check, path), files))


def _tests(check: Check, path: Path) -> None:
    """The tests of one file, in a process of their own: a failed kernel spoils all that follows it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--no-header", "-rfE", "--tb=short"]
    command += ["--timeout", "60", "-o", "addopts=", "-o", "filterwarnings=", "--import-mode=importlib", str(path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    passed, failed, lines = 0, [], []
    with (check.out / f"operators_{path.stem}.txt").open("w") as out:
        for line in process.stdout:
            out.write(line)
            lines.append(line)
            passed += " PASSED" in line
            if match := re.match(r"\S+::(\S+) (FAILED|ERROR)", line):
                failed.append(match[1])
                check.row(f"{path.stem}: {match[1]}", match[2].lower(), False)
            elif match := re.match(r"(?:FAILED|ERROR) \S+::(\S+) - (.*)", line):
                check.row(f"{path.stem}: {match[1]}", match[2][:200])
    process.wait()
    whole = process.returncode in (0, 1)
    text = f"{passed} passed, {len(failed)} failed"
    text += "" if whole else f"; ended with {process.returncode}: {''.join(lines)[-500:]}"
    check.row(path.stem, text, whole and not failed)


GOLDENS = {
    "pfnet_r50_256": ("pfnet_r50", 16, "pytorch", (256, 256)),
    "pfnet_r2n101_jittorpool_512": ("pfnet_r2n101", 2, "jittor", (512, 512)),
    "pfnet_r50_320x448": ("pfnet_r50", 16, "pytorch", (320, 448)),
    "pfnet_r50_jittorpool_512": ("pfnet_r50", 16, "jittor", (512, 512)),
}
# Of logits, losses, gradients: those of tests/models/test_golden.py in fp32.
GOLDEN_TOLERANCES = {
    "fp32": (1e-3, 1e-4, 1e-2),
    "tf32": (1e-2, 2e-3, 1e-1),
    "bf16": (2e-1, 3e-2, 1),
    "fp16": (5e-2, 1e-2, 1),
}


def goldens(check: Check) -> None:
    """The published networks' logits, losses and gradients."""
    for precision in ("fp32", "bf16", "tf32", "fp16"):
        kernels.set_precision(precision)
        check.guarded(f"{precision} gradients", lambda p=precision: _golden_gradients(check, p))
        for file in list(GOLDENS)[: 4 if precision in ("fp32", "bf16") else 2]:
            check.guarded(f"{precision} {file}", lambda p=precision, f=file: _golden_network(check, f, p))


def _golden_network(check: Check, file: str, precision: str) -> None:
    model, classes, variant, size = GOLDENS[file]
    stored = golden.load(file)
    network = golden.fill(create_model(model, num_classes=classes, variant=variant))
    image = np.random.default_rng(int(stored["input_seed"])).standard_normal((1, 3, *size)).astype(np.float32)
    with jt.no_grad():
        output = network(jt.array(image))
        logits, edges = output.logits.numpy(), [edge.numpy() for edge in output.edge_logits]
    got, expected = logits[..., ::16, ::16], stored["logits"]
    if precision == "fp32":
        check.difference(f"{precision} {file} logits", golden.difference(got, expected), GOLDEN_TOLERANCES["fp32"][0])
    else:  # other points are chosen here and there, whose surroundings differ wholly
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        check.row(f"{precision} {file} logits", f"{error:.1e} of the root of the mean square")
    step = size[0] // stored["argmax"].shape[1]
    share = float((logits.argmax(1)[:, ::step, ::step] == stored["argmax"]).mean())
    least = {"fp32": 0.999, "tf32": 0.99, "bf16": 0.9, "fp16": 0.98}[precision]
    check.row(f"{precision} {file} labels that agree", f"{share:.4f}, at least {least}", share >= least)
    check.row(f"{precision} {file} finite edges", all(np.isfinite(edge).all() for edge in edges))


def _golden_gradients(check: Check, precision: str) -> None:
    stored = golden.load("pfnet_r50_grad_192")
    rng = np.random.default_rng(int(stored["seed"]))
    image = rng.standard_normal((2, 3, 192, 192)).astype(np.float32)
    mask = np.kron(rng.integers(0, 6, (2, 12, 12)), np.ones((1, 16, 16))).astype(np.int32)
    mask[:, :16] = 255
    edge = np.kron(rng.random((2, 24, 24)) > 0.8, np.ones((1, 8, 8))).astype(np.float32)
    network = golden.fill(create_model("pfnet_r50", num_classes=6))
    network.train()
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.freeze()
    network.head.ppm.bottleneck[3].p = 0.0
    _, losses, gradients = GOLDEN_TOLERANCES[precision]
    terms = pfnet_loss(edge_weight=25.0)(network(jt.array(image)), {"mask": jt.array(mask), "edge": jt.array(edge)})
    values = np.array([float(v.item()) for v in terms.values()])
    check.difference(f"{precision} losses", float(np.abs(values / stored["terms"] - 1).max()), losses)
    keys = [key.removeprefix("grad/") for key in stored if key.startswith("grad/")]
    state = network.state_dict()
    errors = {}
    for key, gradient in zip(keys, jt.grad(sum(terms.values()), [state[key] for key in keys]), strict=True):
        flat = gradient.numpy().ravel()
        errors[key] = golden.difference(flat[:: max(1, flat.size // 256)][:256], stored[f"grad/{key}"])
    worst = max(errors, key=errors.__getitem__)
    check.difference(f"{precision} gradients, worst {worst}", errors[worst], gradients)
    check.row(f"{precision} gradients, median", f"{statistics.median(errors.values()):.1e}")


def pfnet_loss(edge_weight: float = 1.0) -> PFNetLoss:
    """The loss of conf/loss/pfnet.yaml."""
    return PFNetLoss(
        segmentation=None,
        ohem=True,
        ohem_threshold=0.7,
        min_kept=10000,
        class_weights=None,
        label_smoothing=0.0,
        terms={},
        seg_weight=1.0,
        edge="bce",
        edge_weight=edge_weight,
        aux_weight=0.4,
        aux_min_kept=None,
        point_weight=1.0,
        ignore_index=255,
        global_reduction=False,
    )


class Ours:
    """Steps of PFNet R50 of 16 classes, timed; `torch_pfnet.py --serve` answers the same requests."""

    def __init__(self) -> None:
        self.model = create_model("pfnet_r50", num_classes=16)
        self.model.head.ppm.bottleneck[3].p = 0.0  # the other network has no dropout
        sgd = run_settings.Sgd(
            name="sgd",
            lr=1e-4,
            scale_lr="none",
            reference_batch=16,
            momentum=0.9,
            weight_decay=1e-4,
            nesterov=False,
            decay_norms=True,
            lr_factors={},
        )
        self.model.train()
        self.optimizer = build_optimizer(sgd, self.model)
        self.loss = pfnet_loss()

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a request: work, size, batch, precision, seconds."""
        kernels.set_precision(request["precision"])
        arrays = batch(request["batch"], request["size"])
        inputs = [jt.array(a) for a in arrays]

        def train() -> None:
            image, mask, edge = map(jt.array, arrays) if request["work"] == "feed" else inputs
            terms = self.loss(self.model(image), {"mask": mask, "edge": edge})
            self.optimizer.step(sum(terms.values()))

        def predict() -> None:
            with jt.no_grad():
                self.model.predict(inputs[0]).sync()

        training = request["work"] != "predict"
        self.model.train() if training else self.model.eval()
        jt.sync_all(True)
        jt.gc()
        before = device_memory()
        times = timed(train if training else predict, lambda: jt.sync_all(True), request["seconds"])
        used = before - device_memory()
        inputs.clear()
        jt.sync_all(True)
        jt.gc()
        return {"ms": times, "mib": used}


def batch(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, masks and edges; large blocks of one class, as in aerial images."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((size, 3, side, side)).astype(np.float32)
    mask = np.kron(rng.integers(0, 16, (size, side // 32, side // 32)), np.ones((1, 32, 32))).astype(np.int32)
    edge = (rng.random((size, side, side)) < 0.1).astype(np.float32)
    return image, mask, edge


def timed(work: Callable[[], None], wait: Callable[[], None], seconds: float) -> list[float]:
    """Milliseconds of a step, in three blocks of steps that follow each other without waiting."""
    work(), wait(), work(), wait()
    started = time.perf_counter()
    work(), wait()
    count = max(1, min(10, int(seconds / 3 / (time.perf_counter() - started))))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        times.append(1000 * (time.perf_counter() - started) / count)
    return times


def device_memory() -> float:
    """MiB of the card that nobody uses."""
    unused, total = ctypes.c_size_t(), ctypes.c_size_t()
    ctypes.CDLL(None).cudaMemGetInfo(ctypes.byref(unused), ctypes.byref(total))
    return unused.value / 2**20


class Torch:
    """The same network in PyTorch, in a process of its own."""

    def __init__(self, python: str, folder: Path) -> None:
        command = [python, str(ROOT / "benchmarks" / "torch_pfnet.py"), str(folder), "--serve"]
        self._errors = (folder / "torch.log").open("w")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=outside()
        )
        self.name = self._read()["name"]

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"PyTorch's process has ended, see {self._errors.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def outside() -> dict[str, str]:
    """The environment without what is meant for this Python."""
    mine = ("PYTHONPATH", "LD_LIBRARY_PATH", "PFSEG_PORTABLE", "PYTHONHOME")
    return {key: value for key, value in os.environ.items() if key not in mine}


def speed(check: Check, compiled: bool = False) -> None:
    """Steps and predictions in turns with PyTorch: milliseconds, memory, ratios."""
    ours = Ours()
    theirs = None
    if check.torch:
        np.savez(check.out / "weights.npz", **{key: var.numpy() for key, var in ours.model.state_dict().items()})
        theirs = Torch(check.torch, check.out)
        check.row("PyTorch", theirs.name)
    plan = [
        ("train", 896, 8, "bf16"), ("predict", 896, 8, "bf16"), ("feed", 896, 8, "bf16"), ("train", 896, 8, "tf32"),
        ("train", 896, 8, "fp16"),
        ("predict", 896, 8, "tf32"), ("train", 512, 16, "bf16"), ("train", 512, 8, "bf16"), ("train", 896, 2, "bf16"),
        ("train", 512, 2, "bf16"), ("train", 896, 16, "bf16"), ("predict", 896, 8, "fp16"), ("train", 512, 16, "tf32"),
        ("train", 896, 8, "fp32"), ("predict", 896, 8, "fp32"), ("train", 512, 16, "fp16"), ("train", 896, 2, "tf32"),
        ("train", 512, 2, "tf32"), ("train", 896, 16, "tf32"), ("train", 512, 16, "fp32"),
    ]  # fmt: skip
    if compiled:
        plan = plan[:3]
    for work, size, count, precision in plan:
        if check.left() < 15:
            check.row("left out", f"from {work} {size} px, batch {count}, {precision} on: time is up")
            break
        request = {"work": work, "size": size, "batch": count, "precision": precision, "seconds": 1.0}
        if check.pretend:
            request |= {"size": 128, "batch": 2}
        name = f"{work} {size} px, batch {count}, {precision}"
        check.guarded(name, lambda request=request, name=name: _compare(check, ours, theirs, request, name, compiled))


def _compare(
    check: Check, ours: Ours, theirs: Torch | None, request: dict[str, Any], name: str, compiled: bool
) -> None:
    answers: list[list[dict[str, Any]]] = [[], []]
    for turn in range(2):
        answers[0].append(ours.request(request))
        if theirs is not None:
            answers[1].append(theirs.request({**request, "compile": compiled, "first": turn == 0}))
    milliseconds = [
        statistics.median(ms for answer in side for ms in answer.get("ms", [])) if side and "ms" in side[0] else None
        for side in answers
    ]
    mine = answers[0][-1]
    text = f"ours {milliseconds[0]:.1f} ms, {mine['mib']:.0f} MiB"
    more: dict[str, object] = {"ours": answers[0], "torch": answers[1], **request}
    if theirs is not None and milliseconds[1] is None:
        text += f"; PyTorch: {answers[1][0].get('error')}"
    elif theirs is not None:
        other = answers[1][-1]
        ratio, memory = milliseconds[1] / milliseconds[0], mine["mib"] / other["mib"]
        text += f"; PyTorch {milliseconds[1]:.1f} ms, {other['mib']:.0f} MiB ({other['peak']:.0f} allocated)"
        text += f"; {ratio:.2f} times as fast, {memory:.2f} of the memory"
        more |= {"ratio": ratio, "memory": memory}
    check.row(name, text, None, **more)


def compiled(check: Check) -> None:
    """The most telling ones beside torch.compile."""
    if not check.torch:
        check.row("skipped", "no Python with PyTorch")
        return
    speed(check, compiled=True)


def repeats(check: Check) -> None:
    """20 steps twice from one seed, in each precision: equal to the last bit or not."""
    side, steps = (128, 2) if check.pretend else (256, 20)
    arrays = batch(4, side)

    def run(precision: str) -> np.ndarray:
        kernels.set_precision(precision)
        jt.set_global_seed(0)
        np.random.seed(0)
        ours = Ours()
        losses = []
        for _ in range(steps):
            image, mask, edge = map(jt.array, arrays)
            total = sum(ours.loss(ours.model(image), {"mask": mask, "edge": edge}).values())
            ours.optimizer.step(total)
            losses.append(total)
        weights = [
            v.numpy().ravel() for v in (*losses, *list(ours.model.state_dict().values())[:: 1 if check.pretend else 7])
        ]
        return np.concatenate(weights)

    for deterministic, precision in product((True, False), ("bf16", "tf32", "fp32")):
        if check.left() < 8:
            return
        if hasattr(kernels, "set_deterministic"):
            kernels.set_deterministic(deterministic)
        first, second = run(precision), run(precision)
        equal = first.tobytes() == second.tobytes()
        text = "equal"
        if not equal:
            differences = np.abs(first[:steps] / second[:steps] - 1)
            start = int((differences > 0).argmax()) + 1
            text = f"losses differ by {differences.max():.1e}, first at step {start}; {unequal_gradients(arrays)}"
        name = f"{precision}{', deterministic' if deterministic else ''}, {steps} steps"
        check.row(name, f"{text}; loss {first[0]:.4f} to {first[steps - 1]:.4f}", equal if deterministic else None)


def unequal_gradients(arrays: tuple[np.ndarray, ...]) -> str:
    """Names of the gradients and outputs that two passes of the same weights give differently."""
    ours = Ours()
    weights = {name: var for name, var in ours.model.named_parameters() if "running" not in name}

    def run() -> dict[str, bytes]:
        image, mask, edge = map(jt.array, arrays)
        output = ours.model(image)
        terms = ours.loss(output, {"mask": mask, "edge": edge})
        gradients = dict(zip(weights, jt.grad(sum(terms.values()), list(weights.values())), strict=True))
        edges = {f"edge {i}": edge for i, edge in enumerate(output.edge_logits)}
        return {
            name: v.numpy().tobytes() for name, v in ({"logits": output.logits} | edges | terms | gradients).items()
        }

    first, second = run(), run()
    found = [name for name in first if first[name] != second[name]]
    return f"{len(found)} of {len(first)} differ in one pass: {', '.join(found[:12])}"


class Array(ctypes.Structure):
    """As in `pfseg/ops/cuda/kernels.h`."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p), ("type", ctypes.c_int), ("dims", ctypes.c_int), ("shape", ctypes.c_int64 * 6),
    ]  # fmt: skip

    def __str__(self) -> str:
        """Type and shape."""
        kind = ("fp32", "bf16", "fp16", "int32", "uint8")[self.type]
        return f"{kind} {'x'.join(map(str, self.shape[: self.dims]))}"


class Stopwatch:
    """Times each own kernel by calling it through Python, with the device waited for before and after."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], list[float]] = {}
        self._kept: list[Any] = []
        self._address = kernels._address
        kernels._address = cache(self._timed)

    def _timed(self, library: str, function: str) -> int:
        kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(Array), ctypes.POINTER(Array), ctypes.c_void_p)
        original = kind(self._address(library, function))
        wait = ctypes.CDLL(None).cudaDeviceSynchronize

        def call(inputs: Any, outputs: Any, options: int) -> None:
            wait()
            started = time.perf_counter()
            original(inputs, outputs, options)
            wait()
            seconds = time.perf_counter() - started
            self.times.setdefault((function, f"{inputs[0]} to {outputs[0]}"), []).append(seconds)

        callback = kind(call)
        self._kept.append(callback)
        return int(ctypes.cast(callback, ctypes.c_void_p).value or 0)


def profile(check: Check) -> None:
    """Where the time of a bf16 training step and of a prediction goes: own kernels, and Jittor's operators."""
    watch = Stopwatch()
    ours = Ours()
    size = {"size": 128, "batch": 2} if check.pretend else {"size": 896, "batch": 8}
    for work in ("train", "predict"):
        request = {"work": work, "precision": "bf16", "seconds": 0.0, **size}  # 6 steps
        ours.request(request)
        watch.times.clear()
        jt.profiler.start(0, 0)
        ours.request(request)
        jt.profiler.stop()
        steps = 6.0
        head, *rows = jt.profiler.report()
        table = "\n".join("\t".join(map(str, row)) for row in (head, *rows))
        (check.out / f"profile_{work}_jittor.txt").write_text(table)
        columns = {name: index for index, name in enumerate(head)}
        jittor = sum(float(row[columns["TotalTime"]]) for row in rows) / 1e6 / steps
        calls = sum(int(row[columns["Count"]]) for row in rows) / steps
        check.row(f"{work}: Jittor's own operators", f"{jittor:.2f} ms in {calls:.0f} calls of a step")
        for row in sorted(rows, key=lambda row: -float(row[columns["TotalTime"]]))[:4]:
            milliseconds, count = float(row[columns["TotalTime"]]) / 1e6 / steps, int(row[columns["Count"]]) / steps
            name = " ".join(re.findall(r"opkey\d:(\w+)|OP:(\w+)", row[0])[0]) if "opkey" in row[0] else row[0][:40]
            check.row(f"{work}: {name}", f"{milliseconds:.2f} ms in {count:.0f} calls: {row[0][:200]}")
        lines = ["function\tarrays\tms of a step\tcalls"]
        by_name: dict[str, list[float]] = {}
        ordered = sorted(watch.times.items(), key=lambda item: -sum(item[1]))
        for (name, arrays), seconds in ordered:
            lines.append(f"{name}\t{arrays}\t{1000 * sum(seconds) / steps:.3f}\t{len(seconds) / steps:.1f}")
            by_name.setdefault(name, []).extend(seconds)
        (check.out / f"profile_{work}.txt").write_text("\n".join(lines))
        total = sum(map(sum, by_name.values()))
        text = f"{1000 * total / steps:.2f} ms in {sum(map(len, by_name.values())) / steps:.0f} calls of a step"
        check.row(f"{work}: own kernels, each waited for", text)
        for name, seconds in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]:
            text = f"{1000 * sum(seconds) / steps:.2f} ms in {len(seconds) / steps:.0f} calls"
            check.row(f"{work}: {name}", f"{text}, {100 * sum(seconds) / total:.0f} %")
        for (name, arrays), seconds in ordered[:12]:
            text = f"{1000 * sum(seconds) / steps:.2f} ms in {len(seconds) / steps:.0f} calls"
            check.row(f"{work}: {name}", f"{text} of {arrays}")


def training(check: Check) -> None:
    """The real command on the built-in data, in bf16 and fp32: losses and mIoU."""
    steps = 3 if check.pretend else 300
    for precision in ("bf16", "fp32"):
        folder = check.out / f"training_{precision}"
        command = [sys.executable, str(ROOT / "train.py"), f"precision={precision}", "logger=none", "launch=inline"]
        command += [
            f"trainer.max_steps={steps}",
            f"trainer.max_epochs={'13' if steps > 3 else '1'}",
            "trainer.val_every=13",
        ]
        command += [f"hydra.run.dir={folder}"]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        (check.out / f"training_{precision}.txt").write_text(done.stdout + done.stderr)
        if done.returncode:
            check.row(precision, (done.stdout + done.stderr)[-700:], False)
            continue
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        scores = [row[key] for row in rows for key in ("val/mIoU", "val/miou") if key in row]
        text = f"losses {', '.join(f'{loss:.3f}' for loss in losses[:: max(1, len(losses) // 8)])}; mIoU {scores}"
        passed = bool(np.isfinite(losses).all() and losses[-1] < losses[0])
        check.row(f"{precision}, {steps} steps", f"{text}; {time.monotonic() - started:.0f} s in all", passed)


def ranks(check: Check) -> None:
    """NCCL with one rank, and two ranks on one card, which takes MPI."""
    if (library := None if check.pretend else nccl.find_library()) is not None:
        check.guarded("NCCL, one rank", lambda: _one_rank(check, library))
    if program("mpirun") is None:
        check.row("skipped", "mpirun is not here")
        return
    folder = check.out / "ranks"
    command = [sys.executable, str(ROOT / "train.py"), "debug=fast", "ranks=2", "gpus=1", f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    check.row("two ranks", "ran" if done.returncode == 0 else (done.stdout + done.stderr)[-700:], done.returncode == 0)


def _one_rank(check: Check, library: Any) -> None:
    values = np.random.default_rng(0).standard_normal(100003).astype(np.float32)
    options = nccl.join(library, nccl.new_identity(library), 0, 1)
    (averaged,) = kernels.run("ranks_average", [(values.shape, "float32")], [jt.array(values)], **options)
    check.row("NCCL, one rank", "a mean over one rank", bool(np.array_equal(averaged.numpy(), values)))


CHECKS: dict[str, Callable[[Check], None]] = {
    check.__name__: check
    for check in (start, convolutions, operators, goldens, speed, repeats, profile, training, compiled, ranks)
}


def main() -> None:
    """Run a check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--torch", default="")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--pretend", action="store_true")
    arguments = parser.parse_args()
    CHECKS[arguments.check](Check(arguments))


if __name__ == "__main__":
    main()
