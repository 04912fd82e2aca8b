from __future__ import annotations

import numpy as np
import pytest
from data.building import augmentation

from pfseg.data.transforms import Augment, pad, paste, rescale, resize


def pair(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is its mask's label, row by row in the mask, with noise in the other channels."""
    rng = np.random.default_rng(0)
    mask = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width)).copy()
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[..., 0] = mask
    return image, mask


def run(augment: Augment, seed: int = 0, size: tuple[int, int] = (32, 32), **keywords) -> tuple[np.ndarray, np.ndarray]:
    image, mask = pair()
    return augment(image, mask, np.random.default_rng(seed), size, **keywords)


STRONG = augmentation(
    scale_range=[0.5, 2],
    hflip=0.5,
    vflip=0.5,
    rot90=True,
    rotate=20,
    blur=[0.15, 1.3],
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
    max_class_share=0.7,
)


def test_without_settings_an_image_of_the_crop_size_is_left_alone():
    image, mask = run(augmentation(), size=(60, 80))
    np.testing.assert_array_equal(image, pair()[0])
    np.testing.assert_array_equal(mask, pair()[1])


def test_without_scale_range_the_whole_image_is_resized():
    image, mask = run(augmentation(), size=(30, 40))
    np.testing.assert_array_equal(mask, pair()[1][1::2, 1::2])
    assert image.shape == (30, 40, 3)


@pytest.mark.parametrize("size", [(32, 32), (48, 96), (200, 20)])
@pytest.mark.parametrize("seed", range(4))
def test_result_has_the_promised_form(size, seed):
    image, mask = run(STRONG, seed, size)
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert image.dtype == mask.dtype == np.uint8
    assert image.flags.c_contiguous
    assert mask.flags.c_contiguous
    assert set(np.unique(mask)) <= {*range(60), 255}


def test_same_generator_same_result():
    for first, second in zip(run(STRONG, 5), run(STRONG, 5), strict=True):
        np.testing.assert_array_equal(first, second)
    assert (run(STRONG, 5)[0] != run(STRONG, 6)[0]).any()


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_together(seed):
    image, mask = run(augmentation(scale_range=[1, 1], hflip=0.5, vflip=0.5, rot90=True), seed)
    np.testing.assert_array_equal(image[..., 0], mask)


def test_flips_and_turns():
    whole = {"size": (60, 80)}
    np.testing.assert_array_equal(run(augmentation(hflip=1), **whole)[0], pair()[0][:, ::-1])
    np.testing.assert_array_equal(run(augmentation(vflip=1), **whole)[1], pair()[1][::-1])
    square = pair(40, 40)
    turned = [
        augmentation(rot90=True)(*square, np.random.default_rng(seed), (40, 40))[1][0, [0, -1]].tolist()
        for seed in range(20)
    ]
    assert sorted(map(list, {tuple(corners) for corners in turned})) == [[0, 0], [0, 39], [39, 0], [39, 39]]
    oblong = {tuple(run(augmentation(rot90=True), seed, **whole)[1][0, [0, -1]]) for seed in range(20)}
    assert oblong == {(0, 0), (59, 59)}


def test_scaled_crop_shows_that_many_source_pixels():
    _, mask = run(augmentation(scale_range=[2, 2]))
    assert len(np.unique(mask)) == 16
    _, mask = run(augmentation(scale_range=[0.6, 0.6]), size=(36, 36))
    assert np.ptp(mask) == pytest.approx(59, abs=2)


def test_padding_is_even_black_and_ignored():
    image, mask = run(augmentation(scale_range=[0.5, 0.5]), size=(40, 40))
    assert (mask == 255).sum() == 10 * 40
    assert (mask[:5] == 255).all()
    assert (mask[-5:] == 255).all()
    assert not image[mask == 255].any()
    image, mask = pad(*pair(3, 4), (4, 3))
    assert mask.shape == (4, 4)
    assert not image[mask == 255].any()


@pytest.mark.parametrize("point", [(0, 0), (59, 79), (30, 2)])
def test_crop_contains_the_point(point):
    image, mask = pair()
    mask[point] = 99
    for seed in range(10):
        _, part = augmentation(scale_range=[1, 1])(image, mask, np.random.default_rng(seed), (20, 20), centre=point)
        assert (part == 99).sum() == 1


def test_crops_of_one_class_are_drawn_again():
    image, mask = np.zeros((64, 256, 3), np.uint8), np.zeros((64, 256), np.uint8)
    mask[:, 128:] = 1
    mask[:, :100] = 255

    def shares(augment: Augment) -> list[float]:
        crops = [augment(image, mask, np.random.default_rng(seed), (64, 64))[1] for seed in range(40)]
        return [float((crop == 1).sum() / max(1, (crop < 255).sum())) for crop in crops]

    limited = shares(augmentation(scale_range=[1, 1], max_class_share=0.9))
    assert np.mean(np.array(limited) > 0.9) < 0.1 < np.mean(np.array(shares(augmentation(scale_range=[1, 1]))) > 0.9)


def test_rotation_leaves_ignored_corners():
    _, mask = run(augmentation(rotate=45), seed=2, size=(60, 60))
    assert mask[0, 0] == 255
    assert mask[30, 30] != 255


def test_colour_changes_leave_the_mask_alone():
    for augment in (
        augmentation(brightness=0.5),
        augmentation(contrast=0.5),
        augmentation(saturation=1.0),
        augmentation(hue=0.5),
    ):
        image, mask = run(augment, size=(60, 80))
        np.testing.assert_array_equal(mask, pair()[1])
        assert (image != pair()[0]).any()


def test_grey_has_no_hue_and_no_saturation():
    grey = np.repeat(np.arange(0, 250, dtype=np.uint8).reshape(25, 10, 1), 3, axis=2)
    mask = np.zeros((25, 10), np.uint8)
    changed, _ = augmentation(hue=0.5, saturation=0.9)(grey, mask, np.random.default_rng(1), (25, 10))
    np.testing.assert_allclose(changed, grey, atol=1)


def test_blur_smooths():
    sharp, soft = run(augmentation(), size=(60, 80))[0], run(augmentation(blur=[1.3, 1.3]), size=(60, 80))[0]
    assert np.diff(soft[..., 1].astype(int)).std() < 0.5 * np.diff(sharp[..., 1].astype(int)).std()


def test_paste_takes_image_and_mask_of_one_rectangle():
    first, second = pair(40, 60), (np.full((40, 60, 3), 77, np.uint8), np.full((40, 60), 88, np.uint8))
    shares = []
    for seed in range(200):
        image, mask = paste(first, second, np.random.default_rng(seed))
        y, x = np.nonzero(mask == 88)
        box = np.zeros(mask.shape, bool)
        box[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        np.testing.assert_array_equal(mask == 88, box)
        assert (image[box] == 77).all()
        np.testing.assert_array_equal(image[~box], first[0][~box])
        shares.append(box.mean())
    assert max(shares) < 0.55
    assert np.mean(shares) == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(first[1], pair(40, 60)[1])  # its arguments are left alone


def test_shrinking_averages_and_enlarging_does_not_invent_labels():
    board = np.indices((40, 40)).sum(axis=0).astype(np.uint8) % 2
    image, mask = resize(np.repeat(board[..., None] * 200, 3, axis=2), board * 7, (20, 20))
    np.testing.assert_allclose(image, 100, atol=1)
    assert set(np.unique(mask)) <= {0, 7}
    image, mask = rescale(*pair(), 1.5)
    assert image.shape == (90, 120, 3)
    assert mask.shape == (90, 120)
