"""One image that several ranks share."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from pfseg.errors import DataError
from pfseg.prediction.folder import Task
from pfseg.prediction.rows import Rows
from pfseg.prediction.strips import Strips, share_done

TASK = Task(Path("/images/a.tif"), 100, 7, True, {"classes": Path("/maps/a.tif"), "margin": Path("/maps/b.tif")})


def strip(number: int) -> Rows:
    labels = np.full((2, 5), number, np.uint8)
    margin = np.full((2, 5), number / 8, np.float32)
    return Rows(None, labels, np.full((2, 5, 3), number / 8, np.float16), {"margin": margin})


def test_strips_come_back_in_order(tmp_path: Path):
    strips = Strips(tmp_path, TASK, 4)
    for number in (2, 0, 3, 1):
        assert not strips.complete and share_done(tmp_path, TASK) < 1
        strips.save(number, strip(number))
    assert strips.complete and share_done(tmp_path, TASK) == 1
    for number, found in enumerate(strips.rows(None)):
        expected = strip(number)
        assert found.image is None and found.probabilities is not None
        for one, other in (
            (found.labels, expected.labels),
            (found.probabilities, expected.probabilities),
            (found.measures["margin"], expected.measures["margin"]),
        ):
            assert one.dtype == other.dtype and np.array_equal(one, other)
    strips.remove()
    assert not any(tmp_path.iterdir())


def test_ranks_begin_far_from_each_other(tmp_path: Path):
    """The first at the top, others in the middle of the longest part that nobody has, where nobody comes along soon."""
    ranks = [Strips(tmp_path, TASK, 16) for _ in range(4)]
    at_work, begun = [], []
    for rank in ranks:
        first = rank.start()
        assert first is not None
        begun.append(first)
        at_work.append(rank.claim(first))
        assert next(at_work[-1]) == first
    assert begun == [0, 8, 4, 12]
    ranks[0].save(0, strip(0))
    for number in at_work[0]:
        ranks[0].save(number, strip(number))
    assert number == 3 and ranks[0].start() == 6  # the next one to come from strip 4 will do 5
    at_work[1].close()  # its rank is gone, and strip 8 not done
    assert ranks[0].start() == 8
    ranks[0].save(8, strip(8))
    assert [*ranks[0].claim(6)] == [6, 7]  # up to what is done
    for rank in at_work:
        rank.close()
    assert ranks[0].start() == 9  # nobody comes along any more


def test_another_image_has_strips_of_its_own(tmp_path: Path):
    """So has the same one changed, or asked for something else."""
    Strips(tmp_path, TASK, 1).save(0, strip(0))
    for change in ({"image": Path("/images/b.tif")}, {"changed": 8}, {"size": 99}, {"targets": {}}):
        assert not Strips(tmp_path, Task(**vars(TASK) | change), 1).complete
    assert Strips(tmp_path, deepcopy(TASK), 1).complete


@pytest.mark.parametrize("content", [b"", b"half of it", None])
def test_a_damaged_strip(tmp_path: Path, content: bytes | None):
    strips = Strips(tmp_path, TASK, 1)
    strips.save(0, strip(0))
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    with pytest.raises(DataError, match=r"0-of-1.npz, which an earlier start has left, is damaged \(.+\): give the"):
        next(strips.rows(None))
