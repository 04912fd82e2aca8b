"""Parts that ranks share."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from pfseg.prediction.shares import Shares

NAMES = [f"/images/{number}.tif" for number in range(6)]


def hold(folder: Path, held: Any, end: Any) -> None:
    """Another rank, which does the second part for ever."""
    for _ in Shares(folder, 1).claim(NAMES[1:]):
        held.set()
        end.wait()


def test_each_part_is_done_once(tmp_path: Path):
    mine, others = Shares(tmp_path, 0), Shares(tmp_path, 1)
    done = []
    for name in mine.claim(NAMES):
        done.append(name)
        mine.finish(name, None)
        other = next(others.claim(NAMES))
        others.finish(other, f"{other} is damaged")
        done.append(other)
    assert done == NAMES and not [*others.claim(NAMES)]
    assert sorted(filter(None, mine.finished())) == [f"{name} is damaged" for name in NAMES[1::2]]
    assert len(mine.finished()) == 6


def test_a_rank_that_dies_leaves_its_part(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    held, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, held, end))
    process.start()
    assert held.wait(60)
    assert [*Shares(tmp_path, 0).claim(NAMES)] == [NAMES[0], *NAMES[2:]]
    process.kill()
    process.join()
    assert [*Shares(tmp_path, 0).claim(NAMES)] == NAMES


def test_progress_is_that_of_all_ranks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pfseg.prediction.shares._SECONDS", 0.0)
    first, second = Shares(tmp_path, 0), Shares(tmp_path, 1)
    assert (first.advance(10), second.advance(5), first.advance(2)) == (10, 15, 17)
