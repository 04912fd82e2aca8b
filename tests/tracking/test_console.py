from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pfseg.tracking.console import RunConsole

CLASSES = [{"name": "road", "color": "3C1098"}, {"name": "roof", "color": [226, 169, 41]}]
CONFIG = {
    "name": "pfnet_r50_dubai",
    "seed": 0,
    "gpus": [0, 1],
    "resume": None,
    "trainer": {"max_steps": 20, "freeze_bn": False},
    "dataset": {"_target_": "pfseg.data.folder.FolderDataset", "classes": CLASSES, "edge": {"rule": "class"}},
    "loss": {},
}
START = {
    "event": "start", "step": 0, "epoch": 0, "steps": 20, "steps_per_epoch": 5, "global_batch": 8, "ranks": 2,
    "device": "CPU", "classes": ["road", "roof"], "images_train": 40, "images_val": 9,
}  # fmt: skip
TRAIN = {
    "event": "train", "step": 7, "epoch": 1,
    "train/loss": 0.5, "train/lr": 0.01, "train/images_per_s": 3.21, "train/eta_s": 3700.0,
}  # fmt: skip
VAL = {
    "event": "val", "step": 10, "epoch": 1, "best": True, "panels": "samples/step_000010.png",
    "val/mIoU": 42.0, "val/mF1": 55.0, "val/OA": 80.0, "val/kappa": 0.5,
    "val/IoU/road": 42.0, "val/precision/road": 60.0, "val/recall/road": 70.0, "val/F1/road": 55.0,
    "val/IoU/roof": None, "val/precision/roof": None, "val/recall/roof": None, "val/F1/roof": None,
}  # fmt: skip


def make(*, live: bool = False) -> tuple[RunConsole, io.StringIO]:
    file = io.StringIO()
    return RunConsole(Path("run"), Console(file=file, width=110, force_terminal=live, color_system=None)), file


def test_the_config_is_a_tree_of_groups() -> None:
    console, file = make()
    console.show_config(CONFIG)
    assert file.getvalue().splitlines() == [
        "pfnet_r50_dubai",
        "├── seed=0  gpus=[0,1]  resume=null  loss={}",
        "├── trainer",
        "│   └── max_steps=20  freeze_bn=false",
        "└── dataset  FolderDataset",
        "    ├── 2 classes: ■ road   ■ roof   ",
        "    └── edge",
        "        └── rule=class",
        "run folder: run",
    ]


def test_boundary_scores_are_a_table_of_their_own() -> None:
    console, file = make()
    scores = {"boundary_F@0.0005": 12.5, "boundary_F@0.001875": None, "boundary_IoU": 3.25}
    classes = {f"{key}/{name}": value for key, value in scores.items() for name in ("road", "roof")}
    console.record(VAL | {f"val/{key}": value for key, value in (scores | classes).items()})
    lines = file.getvalue().splitlines()
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["boundary"])
    assert lines[first].split() == ["boundary", "F@0.0005", "F@0.001875", "IoU"]
    assert [line.split() for line in lines[first + 2 :]][:2] == [[n, "12.50", "-", "3.25"] for n in ("road", "roof")]
    assert ["mean", "12.50", "-", "3.25"] in [line.split() for line in lines[first:]]
    console.record(VAL)
    assert file.getvalue().count("F@") == 2, "only where they were measured"


def test_the_start_tells_the_batch_of_a_rank_and_a_scaled_learning_rate() -> None:
    console, file = make()
    console.show_config({**CONFIG, "optimizer": {"lr": 0.01}})
    console.record({**START, "ranks": 2, "batch_size": 4, "global_batch": 16, "base_lr": 0.02})
    lines = file.getvalue().splitlines()[-2:]
    assert lines[0].rstrip().endswith("2 ranks, global batch 16 (4 per rank, 2 accumulated), 20 steps")
    assert lines[1].rstrip() == "learning rate 0.02: optimizer.lr scaled to this global batch"


def test_plain_lines_where_stdout_is_no_terminal() -> None:
    console, file = make()
    for row in (START, TRAIN, VAL, {"event": "end", "step": 20, "epoch": 3, "status": "done"}):
        console.record(row)
    lines = [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]
    assert lines[0] == "40 training and 9 validation images, 2 classes, CPU, 2 ranks, global batch 8, 20 steps"
    assert lines[1] == "step  7/20  epoch 2/4  loss 0.5000  lr 1.00e-02  3.2 images/s  left 1:01:40"
    assert lines[2] == "validation after epoch 2, step 10  ★ best so far"
    table = [line.split() for line in lines[3:8]]
    assert table[0] == ["class", "IoU", "precision", "recall", "F1"]
    assert table[2] == ["road", "42.00", "60.00", "70.00", "55.00"]
    assert table[3] == ["roof", "-", "-", "-", "-"]
    assert table[4] == ["mean", "42.00", "60.00", "70.00", "55.00"]
    assert lines[8] == "OA 80.00   kappa 0.5000"
    assert lines[9] == "samples: run/samples/step_000010.png"
    assert lines[10].startswith("finished at step 20 after 0:0")


def test_plain_waits_are_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = make()
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for second in range(20):
        now += 1
        console.waiting(float(second + 3))
    for done in (3, 60, 120):
        console.compiling("operators", done, 120, 120.0 - done)
    for done in (1, 2, 4):
        console.record({"event": "progress", "text": "validating", "done": done, "total": 4})
        now += 20
    preparing = "preparing Jittor: a first start compiles it, 1-3 minutes, cached for next time ... "
    assert file.getvalue().splitlines() == [
        f"{preparing}3 s",
        f"{preparing}18 s",
        "compiling operators 120/120, 0:00 left, cached for next time",
        "validating 2/4, 0:40 left",
        "validating 4/4",
    ]


def test_messages_say_their_level() -> None:
    console, file = make()
    console.record({"event": "message", "level": "warning", "text": "2 images skipped [3 known]"})
    console.message("all well")
    assert file.getvalue() == "warning: 2 images skipped [3 known]\nall well\n"


def test_a_resumed_run_says_where_it_goes_on() -> None:
    console, file = make()
    console.record({**START, "step": 5})
    assert "continuing after step 5\n" in file.getvalue()


@pytest.mark.parametrize(
    ("ignored", "told"),
    [
        (0, ""),
        (0.9968, ", 99.7 % of their pixels without a class"),
        (0.0098, ", 0.98 % of their pixels without a class"),
    ],
)
def test_what_masks_hold_is_told_before_training(ignored: float, told: str) -> None:
    console, file = make()
    console.on_masks({"masks": 1200, "ignored": ignored, "classes": CLASSES, "pixels": [10, 30], "images": [600, 1200]})
    assert file.getvalue().splitlines()[0] == f"1,200 training masks{told}:"


@pytest.mark.parametrize(
    "row", [{**TRAIN, "train/eta_s": None}, {"event": "train", "step": 1, "epoch": 0}, {"event": "?"}]
)
def test_missing_figures_do_no_harm(row: dict[str, Any]) -> None:
    for live in (False, True):
        console, _ = make(live=live)
        console.record(row)
        console.finish()


def test_bars_on_a_terminal() -> None:
    console, file = make(live=True)
    console.show_config(CONFIG)
    console.waiting(4.0)
    console.compiling("operators", 30, 120, 90.0)
    console.record(START)
    console.record(TRAIN)
    console.record(VAL)
    console.record({"event": "progress", "step": 7, "epoch": 1, "text": "validating", "done": 1, "total": 2})
    screen = Console(file=io.StringIO(), width=110)
    screen.print(console._progress.get_renderable())
    lines = [" ".join(line.replace("━", "").replace("╸", "").split()) for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert "■ road" in file.getvalue()
    console.record({**TRAIN, "step": 11, "epoch": 2})
    console.finish()
    console.finish()
    assert lines[0].startswith("epoch 2/4") and "40 % loss 0.5000 lr 1.00e-02 3.2 images/s" in lines[0]
    assert lines[1].startswith("step 7/20") and "35 % left 1:01:40 since 0:00" in lines[1]
    assert lines[2].startswith("validating") and lines[2].endswith("50 %")


def test_an_evaluation_starts_with_what_it_evaluates() -> None:
    console, file = make()
    console.show_config({"name": "x", "job": "evaluate", "split": "test"})
    console.record(START | {"steps": 0, "images_train": 0, "ranks": 1})
    assert file.getvalue().splitlines()[-1] == "evaluating 9 images of split test, 2 classes, CPU, 1 rank"
