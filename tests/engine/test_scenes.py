"""Scores of overlapping windows and of whole scenes, with networks that are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.building import eval_loader
from data.fakes import COLORS, tif, write
from data.published import labels, pixels, prepared
from numpy_networks import evaluation_settings

from pfseg.build_data import build_dataset
from pfseg.config.data_settings import FolderData
from pfseg.data.base import SegmentationDataset
from pfseg.data.preparation.places import Place, scene_order, scene_places
from pfseg.data.tiling import Window
from pfseg.engine.evaluator import BlendingEvaluator, Evaluator, SceneEvaluator
from pfseg.engine.scoring import Evaluation, ImageScores
from pfseg.errors import DataError
from pfseg.inference.views import Flips

TABLE = ["dataset.classes=[{name: roof, color: '3C1098'}, {name: road, color: [110, 193, 228]}]"]
SHAPES = {"a": (100, 150), "b": (64, 64), "c": (70, 200)}
STEP = 40  # of patches of 64 px
CUT = ["dataset.prepare.size=64", f"dataset.prepare.stride={STEP}"]


def lopsided(batch: np.ndarray) -> np.ndarray:
    """Logits that follow the place in the window: every patch of a pixel gives others."""
    rows, columns = (np.linspace(-1, 2, side, dtype=np.float32) for side in batch.shape[2:])
    return np.stack([batch[:, 0] * rows[:, None], batch[:, 1] + 0.3 * columns], 1)


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole scenes."""
    root = tmp_path_factory.mktemp("scenes")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        for split in ("train", "val"):
            write(root / split / "images" / f"{name}.png", pixels(*shape, seed))
            write(root / split / "masks" / f"{name}.png", COLORS[labels(*shape, seed, 2)])
    return root


@pytest.fixture(scope="module")
def settings(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data set of patches that were prepared from them."""
    return prepared("folder", source, tmp_path_factory.mktemp("patches") / "out", *TABLE, *CUT)


@pytest.fixture
def patches(settings: FolderData) -> SegmentationDataset:
    return build_dataset(settings, "val")


@pytest.fixture
def scenes(settings: FolderData, source: Path) -> SegmentationDataset:
    return build_dataset(settings.model_copy(update={"root": str(source)}), "val")


VIEWS: dict[str, Any] = {"overlap": 0.0, "scales": (1.0,), "flips": "none"}


def scored(dataset: SegmentationDataset, **options: Any) -> Evaluation:
    names = [info.name for info in dataset.classes]
    options = evaluation_settings(details=lambda: ImageScores(names, (), 4), **options)
    return Evaluator(eval_loader(dataset), **options).run(lopsided, ignore)


def blended(dataset: SegmentationDataset, **options: Any) -> Evaluation:
    options = evaluation_settings(**VIEWS | options)
    return BlendingEvaluator(eval_loader(dataset), **options).run(lopsided, ignore)


def stitched(dataset: SegmentationDataset, places: list[Place], *, patches: bool = False, **options: Any) -> Evaluation:
    names = [info.name for info in dataset.classes]
    loader = eval_loader(dataset, order=scene_order(places, 0, 1))
    options = evaluation_settings(**VIEWS | {"details": lambda: ImageScores(names, (), 4)} | options)
    return SceneEvaluator(loader, places=places, patches=patches, **options).run(lopsided, ignore)


def maps(found: Evaluation) -> dict[str, np.ndarray]:
    return {Path(panel.name).stem: panel.pred for panel in found.panels}


@pytest.mark.parametrize("flips", ["none", "d4"])
def test_stitched_patches_equal_whole_scenes_under_the_same_windows(
    flips: Flips, patches, scenes, settings, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PFSEG_CACHE", str(tmp_path))
    whole = blended(scenes, window=(64, 64), overlap=1 - STEP / 64, flips=flips)
    places = scene_places(patches, "val", Path(settings.root))
    put_together = stitched(patches, places, flips=flips)
    cut = build_dataset(settings.model_copy(update={"root": str(source), "source": "scenes"}), "val")
    read = stitched(cut, scene_places(cut, "val", None), flips=flips)
    assert whole.images == put_together.images == read.images == 3
    for found in (put_together, read):
        np.testing.assert_array_equal(found.confusion, whole.confusion)
        for name, pred in maps(whole).items():
            np.testing.assert_array_equal(maps(found)[name], pred)
    assert whole.confusion.sum() == sum(height * width for height, width in SHAPES.values()), "every pixel once"
    for panel, other in zip(
        sorted(whole.panels, key=lambda p: p.name), sorted(put_together.panels, key=lambda p: p.name), strict=True
    ):
        np.testing.assert_array_equal(panel.image, other.image)
        np.testing.assert_array_equal(panel.mask, other.mask)


def test_patches_and_scenes_in_one_pass(patches, settings):
    places = scene_places(patches, "val", Path(settings.root))
    both, alone = stitched(patches, places, patches=True), scored(patches)
    assert both.images == alone.images == len(patches) == len(places)
    np.testing.assert_array_equal(both.confusion, alone.confusion)
    assert sorted(both.details.rows) == sorted(alone.details.rows)
    scenes_alone = stitched(patches, places)
    np.testing.assert_array_equal(both.scenes.confusion, scenes_alone.confusion)
    assert both.confusion.sum() > both.scenes.confusion.sum(), "overlaps count again in patches"


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_one_window_over_the_image_equals_the_whole_image(overlap: float, scenes):
    whole = scored(scenes, stride=1)
    for name, (height, width) in SHAPES.items():
        one = blended(scenes, window=(height, width), overlap=overlap)
        np.testing.assert_array_equal(maps(one)[name], maps(whole)[name])


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_another_scale_is_scored_on_the_full_size(scale: float, scenes, patches, settings):
    plain = scored(scenes, scale=scale, window=(32, 32))
    same = blended(scenes, scale=scale, window=(32, 32), overlap=0.5, flips="hv")
    assert plain.confusion.sum() == same.confusion.sum()
    assert {name: pred.shape for name, pred in maps(same).items()} == SHAPES
    places = scene_places(patches, "val", Path(settings.root))
    whole = stitched(patches, places, scale=scale)
    assert whole.confusion.sum() == plain.confusion.sum()


def test_pixels_of_patches_that_are_left_out_are_ignored(settings, tmp_path: Path, source: Path):
    sizes = ["dataset.prepare.size=64", f"dataset.prepare.stride={STEP}"]
    data = prepared("folder", source, tmp_path / "out", *TABLE, *sizes).model_copy(update={"on_error": "skip"})
    whole = build_dataset(data, "val")
    (tmp_path / "out" / "val" / "images" / "b_0_64_0_64.png").write_bytes(b"no picture")
    (tmp_path / "out" / "val" / "images" / "c_6_70_136_200.png").unlink()
    dataset = build_dataset(data, "val")
    assert len(dataset) == len(whole) - 1
    found = stitched(dataset, scene_places(dataset, "val", tmp_path / "out"))
    # Of c the corner that no other patch holds is lost; b has no patch left, so it counts as no scene.
    assert found.confusion.sum() == 100 * 150 + 70 * 200 - 6 * 16
    assert found.images == 2


def test_scores_of_single_images(scenes, tmp_path: Path):
    found = scored(scenes)
    details = found.details
    assert [Path(row.name).stem for row in details.rows] == ["a", "b", "c"]
    assert [score for score, _ in details.worst] == sorted(row.miou for row in details.rows)
    assert [score for score, _ in details.best] == sorted((row.miou for row in details.rows), reverse=True)
    panel = details.best[0][1]
    assert details.rows[["a", "b", "c"].index(Path(panel.name).stem)].accuracy == pytest.approx(
        100 * (panel.pred == panel.mask).mean()
    )


def test_single_images_of_other_ranks_are_merged(scenes, tmp_path: Path):
    alone = scored(scenes).details
    parts = [ImageScores(alone.class_names, (), 2) for _ in range(2)]
    for place, panel in enumerate(scored(scenes).panels):
        confusion = np.array([[3 + place, 1], [1, 3]])
        parts[place % 2].add(panel, confusion)
    parts[1].add(panel._replace(mask=np.full_like(panel.mask, 255), name="empty"), np.zeros((2, 2)))
    parts[1].save(tmp_path / "rank1.npz")
    parts[0].merge(tmp_path / "rank1.npz")
    assert [Path(row.name).stem for row in parts[0].rows] == ["a", "c", "b", "empty"]
    assert np.isnan(parts[0].rows[-1].miou)
    assert [Path(panel.name).stem for _, panel in parts[0].worst] == ["a", "b"]
    assert [Path(panel.name).stem for _, panel in parts[0].best] == ["c", "b"]
    np.testing.assert_array_equal(parts[0].best[1][1].image, pixels(*SHAPES["b"], 1))


def test_order_of_patches_by_scene_and_rank():
    names = [*"babcacb"]
    places = [Place(name, (9, 9), Window(9 - i, 9, i % 2, 9)) for i, name in enumerate(names)]
    assert scene_order(places, 0, 1) == [6, 2, 0, 4, 1, 5, 3]
    shares = [scene_order(places, rank, 3) for rank in range(3)]
    assert sorted(len(share) for share in shares) == [2, 2, 3]
    assert sorted(index for share in shares for index in share) == list(range(7))
    assert scene_order(places, 3, 4) == []


def test_what_cannot_be_put_together(scenes, patches, settings, source: Path, tmp_path: Path):
    root = Path(settings.root)
    with pytest.raises(DataError, match=r"score=scenes needs patches of pfseg prepare, but .* has no index"):
        scene_places(scenes, "val", source)
    with pytest.raises(DataError, match=r"but this data set has no index.json: prepare them, or use score=patches"):
        scene_places(scenes, "val", None)
    with pytest.raises(DataError, match=r"a.png \(3 of 3 images\) is not in the split 'val' of .*index.json: only pre"):
        scene_places(scenes, "val", root)
    lost = patches.files.pop()
    with pytest.raises(DataError, match=rf"{lost[0].name} \(1 of \d+ patches\) is missing, so its scene cannot be put"):
        scene_places(patches, "val", root)


def test_nothing_to_score(patches, settings):
    places = scene_places(patches, "val", Path(settings.root))
    loader = eval_loader(patches, order=[])
    evaluator = SceneEvaluator(loader, places=places, patches=True, **evaluation_settings(**VIEWS))
    with pytest.raises(DataError, match="no image could be read, so there is nothing to score"):
        evaluator.run(lopsided, ignore)


def test_scenes_of_any_number_of_bands(source: Path, patches, settings, tmp_path: Path):
    """Further bands change no score of a network that sees the first ones alone."""
    for image in source.rglob("images/*.png"):
        red, green, blue = cv2.imread(str(image))[..., ::-1].transpose(2, 0, 1)
        path = tmp_path / "src" / image.relative_to(source).with_suffix(".tif")
        tif(path, np.stack([red, green, blue, 255 - red]), photometric="minisblack")
        write(
            path.parent.with_name("masks") / image.name,
            cv2.imread(str(image.parent.with_name("masks") / image.name))[..., ::-1],
        )
    data = prepared("folder", tmp_path / "src", tmp_path / "out", *TABLE, *CUT, "dataset.bands=[0,1,2,3]")
    dataset, kept = build_dataset(data, "val"), evaluation_settings()
    four = {key: (*kept[key], 0.5) for key in ("mean", "std")}
    found = stitched(dataset, scene_places(dataset, "val", tmp_path / "out"), patches=True, **four)
    expected = stitched(patches, scene_places(patches, "val", Path(settings.root)))
    assert found.scenes is not None
    np.testing.assert_array_equal(found.scenes.confusion, expected.confusion)
