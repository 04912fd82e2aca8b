from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from torture.files import KINDS, make_town, survive
from torture.mutations import damage, distort, written


def test_the_same_seed_gives_the_same_damage():
    whole = bytes(range(256)) * 4
    assert damage(whole, Random(3)) == damage(whole, Random(3)) != damage(whole, Random(4))
    trees = [written(distort({"a": [1, {"b": 2}], "c": "d"}, Random(5))) for _ in range(2)]
    assert trees[0] == trees[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_damaged_file_of_each_kind_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_town(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [fault for seed in range(len(KINDS)) if (fault := survive(tmp_path, seed))] == []
