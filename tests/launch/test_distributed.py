"""Several ranks compute what one would: losses, BatchNorm, dropout, trainings and scores, under real mpirun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import finished, rows, start, stored, train, worked
from shared_batch import LOSSES, compute, make_batch
from stand_in import settings

from pfseg.launch.driver import run_job

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
RANKS, IMAGES = 3, 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What each rank found on its third of a batch."""
    folder = tmp_path_factory.mktemp("parts")
    np.savez(folder / "batch.npz", **make_batch(IMAGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(TESTS))
        run_job(folder, settings(ranks=RANKS), worker_module="shared_batch")
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    """What one process found on all of the batch."""
    return compute(make_batch(IMAGES))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_over_ranks_are_those_of_the_global_batch(
    name: str, parts: list[dict[str, np.ndarray]], whole: dict[str, np.ndarray]
):
    terms = [key for key in whole if key.startswith(f"{name}/") and "gradient" not in key]
    assert f"{name}/seg" in terms
    for key in terms:
        values = [part[key] for part in parts]
        np.testing.assert_allclose(np.mean(values), whole[key], rtol=1e-5, err_msg=key)
    for key in (f"{name}/gradient0", f"{name}/gradient1"):
        together = np.concatenate([part[key] for part in parts]) / RANKS  # the trainer averages over ranks
        np.testing.assert_allclose(together, whole[key], rtol=1e-4, atol=1e-7 * np.abs(whole[key]).max() + 1e-9)


def test_batchnorm_and_dropout_are_those_of_the_global_batch(
    parts: list[dict[str, np.ndarray]], whole: dict[str, np.ndarray]
):
    for key in ("norm/y", "norm/gradient0", "dropout/y"):
        together = np.concatenate([part[key] for part in parts])
        np.testing.assert_allclose(together, whole[key], rtol=1e-3, atol=1e-3 * np.abs(whole[key]).max(), err_msg=key)
    gradient = sum(part["norm/gradient1"] for part in parts)
    np.testing.assert_allclose(gradient, whole["norm/gradient1"], atol=1e-3)
    for part in parts:
        np.testing.assert_allclose(part["norm/running_mean"], whole["norm/running_mean"], rtol=1e-6)
        np.testing.assert_allclose(part["norm/running_var"], whole["norm/running_var"], rtol=1e-4)


# From end to end: 20 steps of a global batch of 4, or 10 of two such batches, over 5 epochs of 14 samples (and 2 again)

# Ranks and one process round sums otherwise, which an untrained network magnifies: the points that it selects tip over,
# and gradients through them have a norm of 1e4. So with points the weights stay nearly the same; without, they move.
# Crops are padded to differing shares: the mean over valid pixels is the global batch's only with
# `loss.global_reduction`.
SAME = [
    *["optimizer=sgd", "model.dropout=0.2", "loss.global_reduction=true"],
    *["dataset.train_images=14", "dataset.val_images=7"],
    *["trainer.max_epochs=5", "trainer.val_every=5", "trainer.bn_batches=1"],
]
POINTS = ["optimizer.lr=1e-9", "model.num_edge_points=256", "model.salient_pool=16"]
CASES = {
    "ce": ["loss=ce", *POINTS],
    "pfnet": ["loss=pfnet", "loss.min_kept=3000", "trainer.accumulate=2", *POINTS],
    "moving": [
        *["loss=ce", "optimizer.lr=3e-5", "model.num_edge_points=0", "model.salient_pool=0"],
        *["dataset.crop_size=128", "dataset.size=128"],
    ],
}


@pytest.fixture(scope="module", params=CASES)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training by one rank and by two."""
    folder = tmp_path_factory.mktemp(request.param)
    worked(folder / "one", *SAME, *CASES[request.param], "batch_size=4")
    train(folder / "two", *SAME, *CASES[request.param], "batch_size=2", "ranks=2")
    return folder / "one", folder / "two"


def test_two_ranks_have_the_losses_of_one(twins: tuple[Path, Path]):
    one, two = (rows(folder, "train") for folder in twins)
    (begin,) = rows(twins[1], "start")
    assert begin["global_batch"] * begin["steps"] == 80
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, begin["steps"] + 1))
    for a, b in zip(one, two, strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-3), f"step {a['step']}"


@pytest.mark.parametrize("twins", ["ce"], indirect=True)
def test_only_rank_0_writes(twins: tuple[Path, Path]):
    one, two = ({path.name for path in folder.rglob("*")} for folder in twins)
    assert two - one == {"command.txt", "environment.json", "resolved.yaml", "result.json", "worker.log"} | {
        *(".hydra", "config.yaml", "config.pickle", "hydra.yaml", "overrides.yaml", ".run.lock")
    }, "of the driver"
    (begin,) = rows(twins[1], "start")
    assert (begin["ranks"], begin["batch_size"]) == (2, 2)
    assert [row["step"] for row in rows(twins[1], "val")] == [begin["steps"]]


@pytest.mark.parametrize("twins", ["ce"], indirect=True)
def test_ranks_count_the_pixels_that_one_counts(twins: tuple[Path, Path]):
    """7 images: one rank gets more of them than another."""
    confusion = [np.array(stored_confusion(twins[1], ranks)) for ranks in (1, 2, 3)]
    assert confusion[0].sum() == 7 * 64 * 64
    for other in confusion[1:]:
        assert np.abs(other - confusion[0]).sum() / 2 <= max(1e-6 * confusion[0].sum(), 0)


def stored_confusion(run: Path, ranks: int) -> list[list[int]]:
    folder = run / "scored" / str(ranks)
    finished(start("evaluate.py", "gpus=0", f"ranks={ranks}", f"checkpoint={run}", f"hydra.run.dir={folder}"))
    results = stored(folder / "results.json")
    assert results["images"] == 7
    return results["confusion"]
