"""Trainings from end to end: real commands, real mpirun, real kills, real files."""

from __future__ import annotations

import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.fakes import write
from runs import TINY, finished, resume, rows, start, stored, train, worked

from pfseg.config.check import check
from pfseg.config.compose import compose
from pfseg.errors import CheckpointError, DataError, JobError
from pfseg.launch.worker import job as run_worker
from pfseg.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

LONG = ["dataset.train_images=8", "trainer.save_every=1"]
VARIANTS = {  # 8 steps each
    "adamw": [
        *LONG,
        *["optimizer=adamw", "model.dropout=0.5", "trainer.ema=0.9", "trainer.bn_batches=1", "trainer.accumulate=2"],
        *["trainer.max_epochs=4", "trainer.workers=1"],
    ],
    "sgd": [*LONG, "optimizer=sgd"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run of a variant that nothing disturbed, made once."""

    @functools.cache
    def make(variant: str) -> Path:
        folder = tmp_path_factory.mktemp(variant)
        train(folder, *VARIANTS[variant])
        return folder

    return make


@pytest.fixture(scope="module", params=VARIANTS)
def undisturbed(request: pytest.FixtureRequest, whole: Callable[[str], Path]) -> Path:
    return whole(request.param)


def known(values: dict[str, Any]) -> dict[str, Any]:
    """The values without null, a score that there isn't."""
    return {key: value for key, value in values.items() if value is not None}


def numbers(folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    """(event, step, values) of each training and validation row in order, without what clock and memory decide."""
    clock = ("train/images_per_s", "train/eta_s", "train/rank_mib")
    return [
        (event, row["step"], known({key: row[key] for key in row if key.startswith(f"{event}/") and key not in clock}))
        for event in ("train", "val")
        for row in rows(folder, event)
    ]


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = numbers(folder), numbers(other)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    for (_, step, got), (_, _, wanted) in zip(ours, theirs, strict=True):
        assert got == pytest.approx(wanted, rel=1e-5), step
    best = [load_checkpoint(run / "checkpoints" / "best.safetensors") for run in (folder, other)]
    assert best[0][1]["progress"] == best[1][1]["progress"]
    for key, value in best[0][0].items():
        np.testing.assert_allclose(value, best[1][0][key], rtol=1e-4, atol=1e-6, err_msg=key)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def last_step(folder: Path) -> int:
    return max((row["step"] for row in rows(folder, "train")), default=0)


def family(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


# Files


def test_a_run_explains_itself(undisturbed: Path):
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        *(".hydra", "resolved.yaml", "command.txt", "environment.json", "metrics.jsonl", "result.json"),
        *("checkpoints", "samples", "worker.log", "input.json", ".run.lock"),
    }
    assert (undisturbed / "command.txt").read_text().count("train.py") == 1
    assert {"python", "packages"} <= stored(undisturbed / "environment.json").keys()
    result, validations = stored(undisturbed / "result.json"), rows(undisturbed, "val")
    assert (result["status"], result["step"]) == ("done", 8)
    assert result["best/mIoU"] == max(row["val/mIoU"] for row in validations)
    assert result["mIoU"] == validations[-1]["val/mIoU"]
    files = {path.name for path in (undisturbed / "checkpoints").iterdir()}
    assert files == {"last.safetensors", "last.json", "best.safetensors", "best.json"}
    assert stored(undisturbed / "checkpoints" / "best.json")["scores"]["mIoU"] == result["best/mIoU"]
    for row in validations:
        assert cv2.imread(str(undisturbed / row["panels"])).shape[2] == 3
    assert [row["step"] for row in rows(undisturbed, "train")] == list(range(1, 9))
    assert rows(undisturbed, "end")[-1]["status"] == "done"


# Killed, stopped, resumed


def test_killed_at_any_moment_and_resumed(undisturbed: Path, tmp_path: Path):
    variant = next(name for name in VARIANTS if undisturbed.name.startswith(name))
    folder = tmp_path / "run"
    process = start("train.py", *TINY, *VARIANTS[variant], f"hydra.run.dir={folder}")
    moment = random.Random(variant)
    step, seconds = moment.randint(1, 5), moment.uniform(0, 0.5)
    wait_for((folder / "checkpoints" / "last.safetensors").exists, process)
    wait_for(lambda: last_step(folder) >= step, process)
    time.sleep(seconds)
    members = family(process.pid)
    assert len(members) >= 3, "driver, mpirun and rank"
    for pid in members if variant == "adamw" else members[:1]:  # without their driver the others end by themselves
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 20
    while any(map(alive, members)):
        assert time.monotonic() < end, "a rank outlives its driver"
        time.sleep(0.05)
    assert not (folder / "result.json").exists(), "ended before it was killed"
    resume(folder)
    assert_same_run(folder, undisturbed)
    ended, wanted = (known(stored(run / "result.json")) for run in (folder, undisturbed))
    assert ended.pop("status") == wanted.pop("status") == "done"
    assert ended == pytest.approx(wanted, rel=1e-5)
    assert len(list((folder / "checkpoints").iterdir())) == 4, "what was half written is gone"
    assert len((folder / "command.txt").read_text().splitlines()) == 2


def test_stopped_by_sigterm_then_on_a_full_disk_then_resumed(tmp_path: Path, whole: Callable[[str], Path]):
    folder = tmp_path / "run"
    process = start("train.py", *TINY, *VARIANTS["sgd"], f"hydra.run.dir={folder}")
    wait_for(lambda: last_step(folder), process)
    process.terminate()
    told = finished(process, 143)
    assert told.startswith("stopped at step ")
    assert f"go on with: pfseg train resume={folder}" in told
    last = folder / "checkpoints" / "last.safetensors"
    step = load_checkpoint(last)[1]["progress"]["step"]
    assert f"stopped at step {step};" in told
    assert stored(folder / "result.json")["status"] == "stopped"
    assert 0 < step < 8

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))

    files = sorted(path.name for path in last.parent.iterdir())
    told = resume(folder, code=1, preexec_fn=fill_disk)
    assert told.startswith("error: checkpoint not saved, the previous one is intact: ")
    assert "safetensors can't be written (File too large)" in told
    assert load_checkpoint(last)[1]["progress"]["step"] == step
    assert sorted(path.name for path in last.parent.iterdir()) == files

    resume(folder)
    assert_same_run(folder, whole("sgd"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.system("mount", root=True)
def test_a_rank_that_hangs_then_a_full_disk_then_resumed(small_disk: Path, whole: Callable[[str], Path]):
    folder = small_disk / "run"
    process = start("train.py", *TINY, *VARIANTS["sgd"], "launch.timeout=20", f"hydra.run.dir={folder}")
    wait_for(lambda: last_step(folder) > 1, process)
    members = family(process.pid)
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in members}
    rank = next(pid for pid, command in commands.items() if command[1:3] == [b"-m", b"pfseg.launch.worker"])
    os.kill(rank, signal.SIGSTOP)
    told = finished(process, 1)
    assert told.startswith("error: no progress for 20 s (config: launch.timeout): rank 0 on host ")
    assert ": no answer; " in told
    assert f"go on with: pfseg train resume={folder}" in told
    assert not any(map(alive, members))

    last = folder / "checkpoints" / "last.safetensors"
    step = load_checkpoint(last)[1]["progress"]["step"]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - (8 << 20)))
    told = resume(folder, code=1)
    assert told.startswith("error: checkpoint not saved, the previous one is intact: ")
    assert "(No space left on device); free some space on this disk" in told
    assert load_checkpoint(last)[1]["progress"]["step"] == step
    filler.unlink()
    resume(folder)
    assert_same_run(folder, whole("sgd"))


@pytest.mark.parametrize("steps", [1, 2, 4], ids=["mid-epoch", "end of an epoch", "last step"])
def test_a_stopped_run_leaves_nothing_out(steps: int, tmp_path: Path):
    options = ["optimizer=sgd", "trainer.early_stop=5"]
    worked(tmp_path / "whole", *options)
    assert worked(tmp_path / "run", *options, stop=stop_after(steps))["status"] == "stopped"
    assert worked(tmp_path / "run", *options, resume=True)["status"] == "done"
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_resumed_tells_its_scores_again(tmp_path: Path):
    first = worked(tmp_path)
    again = worked(tmp_path, resume=True)
    assert again == {key: None if value != value else value for key, value in first.items()}
    assert len(rows(tmp_path, "val")) == 2


def test_another_network_is_not_resumed(undisturbed: Path):
    said = r"last\.safetensors was trained with model\.backbone\.depth=18, this run has 50; resume without this change"
    with pytest.raises(CheckpointError, match=said):
        worked(undisturbed, "model=pfnet_r50", resume=True)


# Endings


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    told = train(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "trainer.save_every=1", code=1)
    assert told.startswith("error: the loss is not finite at step 2 (seg=nan, edge_layer3=")
    for text in ("edge_layer2=", "edge_layer1=", "learning rate 7.72e+29", "Lower optimizer.lr"):
        assert text in told
    assert load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")[1]["progress"]["step"] == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    with pytest.raises(JobError, match=r"weight is not finite after step 1; what was saved before is whole\. Lower"):
        worked(tmp_path, "optimizer=sgd", "optimizer.lr=1e39", "trainer.save_every=1")
    assert not (tmp_path / "checkpoints").exists()


def test_frozen_batchnorm_keeps_its_statistics(tmp_path: Path):
    worked(tmp_path / "frozen", "trainer.freeze_bn=true", "trainer.bn_batches=1", "trainer.max_steps=2")
    worked(tmp_path / "free", "trainer.max_steps=2")
    frozen, free = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.safetensors")[0] for name in ("frozen", "free")
    )
    means = [key for key in frozen if key.endswith("running_mean") and not key.startswith("optimizer/")]
    assert means
    for key in means:
        assert not frozen[key].any()
        assert (frozen[key.replace("mean", "var")] == 1).all()
        assert free[key].any()


def test_early_stop(tmp_path: Path):
    still = ["optimizer=sgd", "optimizer.lr=1e-12", "trainer.freeze_bn=true"]
    result = worked(tmp_path, *still, "trainer.early_stop=2", "trainer.max_epochs=9")
    assert (result["status"], result["step"], result["best/step"]) == ("early_stop", 6, 2)
    assert rows(tmp_path, "end")[-1]["status"] == "early_stop"


def test_out_of_time_ends_with_a_validation_and_goes_on_when_resumed(tmp_path: Path):
    result = worked(tmp_path, "trainer.max_time=0.0001")
    assert (result["status"], result["step"]) == ("out_of_time", 1)
    assert [row["step"] for row in rows(tmp_path, "val")] == [1]
    assert worked(tmp_path, resume=True)["status"] == "done"
    assert [row["step"] for row in rows(tmp_path, "train")] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(tmp_path, "val")] == [1, 2, 4]


def test_a_run_always_ends_with_a_validation(tmp_path: Path):
    worked(tmp_path, "trainer.max_steps=3", "trainer.max_epochs=null", "trainer.val_every=5")
    assert [row["step"] for row in rows(tmp_path, "val")] == [3]


# Evaluation


def evaluated(folder: Path, *overrides: str) -> dict[str, Any]:
    config = check(compose("evaluate", ["gpus=0", "ranks=1", *overrides]))
    run_worker(config.dump(), folder, lambda: False)
    return stored(folder / "results.json")


def test_evaluate_gives_the_score_of_training(undisturbed: Path):
    told = finished(start("evaluate.py", "gpus=0", f"checkpoint={undisturbed}"))
    (folder,) = (undisturbed / "evaluate").iterdir()
    results, result = stored(folder / "results.json"), stored(undisturbed / "result.json")
    assert results["mIoU"] == pytest.approx(result["best/mIoU"], abs=0.01)
    assert rows(folder, "confusion")[-1]["confusion"] == results["confusion"]
    assert (results["images"], results["step"]) == (3, result["best/step"])
    assert f"{results['mIoU']:.2f}" in told
    assert {"resolved.yaml", "command.txt", "environment.json", "metrics.jsonl", "samples.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert numbers(undisturbed)[-1][1] == 8, "the run's own records are left alone"


def test_evaluate_gives_the_score_of_the_last_checkpoint(undisturbed: Path, tmp_path: Path):
    results = evaluated(tmp_path, f"checkpoint={undisturbed}/checkpoints/last.safetensors")
    assert results["mIoU"] == pytest.approx(stored(undisturbed / "result.json")["mIoU"], abs=0.01)
    assert results["confusion"] == rows(undisturbed, "confusion")[-1]["confusion"]


def test_evaluate_refuses_half_a_file(undisturbed: Path, tmp_path: Path):
    half = tmp_path / "half.safetensors"
    content = (undisturbed / "checkpoints" / "best.safetensors").read_bytes()
    half.write_bytes(content[: len(content) // 2])
    told = finished(start("evaluate.py", "gpus=0", f"checkpoint={half}"), 1)
    assert told.startswith(f"error: {half} is not a complete safetensors file (")
    assert told.count("\n") == 1


def test_evaluate_without_panels(tmp_path: Path):
    worked(tmp_path / "run", "trainer.num_samples=0", "trainer.max_steps=1")
    options = [f"checkpoint={tmp_path}/run", "batch_size=1", "num_samples=0"]
    assert evaluated(tmp_path / "again", *options)["images"] == 3
    assert rows(tmp_path / "again", "val")[0]["panels"] is None


# Several ranks


def test_two_ranks_train_as_one(tmp_path: Path):
    same = ["loss=ce", "augment=none", "model.dropout=0", "optimizer=sgd", "trainer.max_steps=1"]
    train(tmp_path / "two", *same, "ranks=2", "batch_size=1")
    worked(tmp_path / "one", *same)
    begin = rows(tmp_path / "two", "start")
    assert [(row["ranks"], row["global_batch"]) for row in begin] == [(2, 2)]
    losses = [rows(tmp_path / run, "train")[0]["train/loss"] for run in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    two, one = (tmp_path / run / "checkpoints" / "last.safetensors" for run in ("two", "one"))
    gradients, expected = load_checkpoint(two)[0], load_checkpoint(one)[0]
    for key in gradients:
        if key.startswith("optimizer/") and key.endswith("weight"):  # what SGD keeps of the first step
            size = np.abs(expected[key]).max()
            assert np.abs(gradients[key] - expected[key]).max() < 0.05 * size, key
    assert not (tmp_path / "two" / "errors").exists()
    assert len(list(two.parent.iterdir())) == 4
    alone = evaluated(tmp_path / "alone", f"checkpoint={two}")
    assert rows(tmp_path / "two", "confusion")[-1]["confusion"] == alone["confusion"]
    assert alone["images"] == 3


# Data with faults


@pytest.fixture
def town(tmp_path: Path) -> Path:
    root = tmp_path / "town"
    for split in ("train", "val"):
        for number in range(3):
            image = np.random.default_rng([len(split), number]).integers(0, 256, (64, 64, 3), np.uint8)
            mask = np.full((64, 64), 1, np.uint8)
            mask[: 20 + number] = 0
            write(root / split / "images" / f"{number}.jpg", image)
            write(root / split / "masks" / f"{number}.png", mask)
    return root


def of(root: Path) -> list[str]:
    """Settings for a folder of two classes."""
    no_scenes = [text for text in TINY if not text.startswith(("dataset.size", "dataset.train_", "dataset.val_"))]
    return [
        *no_scenes,
        "dataset=folder",
        f"dataset.root={root}",
        f"dataset.classes={TABLE}",
        f"hydra.run.dir={root}/run",
    ]


TABLE = "[{name:roof,color:'3C1098'},{name:road,color:[110,193,228]}]"


def test_a_missing_folder_is_a_config_error(tmp_path: Path):
    told = finished(start("train.py", *of(tmp_path / "nowhere")), 2)
    assert told.startswith(f"error: dataset.root={tmp_path}/nowhere does not exist (looked in ")


@pytest.mark.parametrize("fault", ["no mask", "truncated", "unknown value", "other size", "empty"])
def test_a_fault_in_the_data_is_one_line(fault: str, town: Path):
    image, mask = town / "train" / "images" / "1.jpg", town / "train" / "masks" / "1.png"
    if fault == "no mask":
        mask.unlink()
        expected = f"{image} has no mask: expected {town}/train/masks/1{{.png,"
    elif fault == "truncated":
        image.write_bytes(image.read_bytes()[:-500])
        expected = f"{image} is truncated (its end marker is missing after "
    elif fault == "unknown value":
        write(mask, np.full((64, 64), 7, np.uint8))
        expected = "train/masks/1.png has the value 7 (values outside the class table: 100 % of its pixels)"
    elif fault == "other size":
        write(mask, np.zeros((64, 60), np.uint8))
        expected = "train/images/1.jpg has 64x64 px but its mask train/masks/1.png 60x64"
    else:
        for path in (town / "train" / "images").iterdir():
            path.unlink()
        expected = f"no images below {town}/train: looked for images/*"
    told = finished(start("train.py", *of(town), "trainer.workers=1"), 1)
    assert told.startswith("error: ")
    assert expected in told
    assert told.count("\n") == 1


def test_a_killed_loading_process_is_told(tmp_path: Path):
    settings = ["trainer.workers=1", "trainer.max_epochs=100", "trainer.val_every=100"]
    process = start("train.py", *TINY, *settings, f"hydra.run.dir={tmp_path}")
    wait_for(lambda: last_step(tmp_path), process)
    loaders = [pid for pid in family(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(loaders[0], signal.SIGKILL)
    assert finished(process, 1).startswith("error: a loading process was killed, probably for lack of memory, or did")


def test_faults_are_skipped_and_counted_on_request(town: Path):
    (town / "train" / "masks" / "0.png").unlink()
    for path in (town / "train" / "images" / "1.jpg", town / "val" / "images" / "2.jpg"):
        path.write_bytes(path.read_bytes()[:-500])
    told = finished(start("train.py", *of(town), "dataset.on_error=skip"))
    folder = town / "run"
    messages = [row["text"] for row in rows(folder, "message") if row["level"] == "warning"]
    assert len(messages) == 4
    for start_of, text in zip(
        ("left out: ", "left out: ", "left out: ", "3 faults in the data"), messages, strict=True
    ):
        assert text.startswith(start_of)
    for name in ("train/images/0.jpg has no mask", "train/images/1.jpg is truncated", "val/images/2.jpg is truncated"):
        assert any(name in text for text in messages)
    assert "3 faults in the data were worked around" in told
    begin = rows(folder, "start")[0]
    assert (begin["images_train"], begin["images_val"]) == (2, 3)
    assert sum(map(sum, rows(folder, "confusion")[-1]["confusion"])) == 2 * 64 * 64
    assert rows(folder, "end")[0]["status"] == "done"


def test_nothing_to_score_is_an_error(town: Path):
    for path in (town / "val" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-500])
    config = check(compose("train", [text for text in of(town) if not text.startswith("hydra.")]))
    config.dataset.on_error = "skip"
    with pytest.raises(DataError, match="no image could be read, so there is nothing to score; check the split"):
        run_worker(config.dump(), town / "run", lambda: False)
