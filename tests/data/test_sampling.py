from __future__ import annotations

import numpy as np

from pfseg.data.sampling import ClassIndex, Draw, class_centres, draw_partner, epoch_order


def test_order_holds_every_sample_and_wraps_round():
    order = epoch_order(10, seed=0, epoch=0, batch=4, world_size=2)
    assert len(order) == 16
    assert sorted(order[:10]) == list(range(10))
    np.testing.assert_array_equal(order[10:], order[:6])


def test_order_depends_on_seed_and_epoch_only():
    def order(seed: int, epoch: int, **keywords: int) -> list[int]:
        return epoch_order(64, seed=seed, epoch=epoch, **{"batch": 4, **keywords}).tolist()

    assert order(1, 2) == order(1, 2) == order(1, 2, batch=2, world_size=2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_batches_are_a_multiple():
    assert len(epoch_order(10, seed=0, epoch=0, batch=2, multiple=3)) == 12
    assert len(epoch_order(1, seed=0, epoch=0, batch=4, multiple=2)) == 8


def test_centres_lie_on_their_class_tile_by_tile():
    mask = np.full((1100, 30), 255, dtype=np.uint8)
    mask[0:11, 0:11] = 4
    mask[1030:1033, 5] = 4
    mask[500, 20] = 2
    assert sorted(class_centres(mask)) == [(2, 500, 20), (4, 5, 5), (4, 1031, 5)]
    ring = np.zeros((9, 9), dtype=np.uint8)
    ring[1:8, 1:8] = 1
    ring[3:6, 3:6] = 0
    for label, y, x in class_centres(ring):
        assert ring[y, x] == label


def test_a_share_is_drawn_class_by_class():
    index = ClassIndex(4, np.array([[0, 0, 1, 1], [0, 2, 5, 6], [1, 0, 2, 2]]))
    order = np.zeros(40, dtype=np.int64)
    draws = index.draw(order, share=0.5, seed=0, epoch=0)
    drawn = [draw for draw in draws if draw.centre]
    assert len(draws) == 40
    assert len(drawn) == 20
    assert sum(draw == Draw(0, (5, 6)) for draw in drawn) == 10  # class 2; classes 1 and 3 occur nowhere
    assert draws == index.draw(order, share=0.5, seed=0, epoch=0) != index.draw(order, share=0.5, seed=0, epoch=1)


def test_nothing_to_draw_from():
    draws = ClassIndex(2, np.empty((0, 4), int)).draw(np.arange(3), share=1.0, seed=0, epoch=0)
    assert draws == [Draw(0), Draw(1), Draw(2)]


def test_partners_depend_on_seed_epoch_and_position_only():
    draws = [Draw(index) for index in range(50)]

    def partners(share: float, seed: int = 0, epoch: int = 0) -> list[Draw | None]:
        return [draw_partner(draws, position, share=share, seed=seed, epoch=epoch) for position in range(50)]

    assert partners(0.3) == partners(0.3)
    assert partners(0.3) != partners(0.3, seed=1)
    assert partners(0.3) != partners(0.3, epoch=1)
    assert set(partners(0.0)) == {None}
    assert len(set(partners(1.0)) - {None}) > 20
    assert 5 < sum(partner is not None for partner in partners(0.3)) < 25
