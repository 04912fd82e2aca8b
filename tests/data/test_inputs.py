"""What a network is given, as it is recorded and followed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.fakes import tif, write

from pfseg.data.census import indexed_census
from pfseg.data.inputs import make_record, misfit, patch_bands, patch_folder, pooled_range, prepared_record, survey
from pfseg.data.reader import ImageReader
from pfseg.errors import DataError


def save(path: Path, low: int, high: int, kind: str = "uint16", count: int = 3) -> Path:
    values = np.random.default_rng(0).integers(low, high + 1, (count, 40, 50)).astype(kind)
    tif(path, values, photometric="minisblack")
    return path


def nothing(done: int, total: int) -> None:
    pass


def test_a_survey_tells_what_most_files_hold(tmp_path):
    files = [save(tmp_path / f"{n}.tif", 100, 900 + n) for n in range(3)]
    write(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "b.tif").write_bytes(b"no image")
    found = survey([*files, tmp_path / "a.png", tmp_path / "b.tif"], ImageReader())
    assert found is not None
    assert (found["type"], found["bands"]) == ("uint16", 3)
    np.testing.assert_allclose(found["bounds"], [[108, 894]] * 3, atol=6)
    assert survey([tmp_path / "a.png"], ImageReader()) == {"type": "uint8", "bands": 3, "bounds": None}
    assert survey([], ImageReader()) is None


def test_a_record_is_json(tmp_path):
    record = make_record(ImageReader((2, 1, 0), {"range": [0, 900]}), [save(tmp_path / "a.tif", 0, 900)])
    assert json.loads(json.dumps(record)) == record
    assert (record["bands"], record["stretch"], record["nodata"]) == ([2, 1, 0], {"range": [0, 900]}, "black")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, None),
        ({"high": 400}, None),
        ({"high": 10000}, r"99 % of its values are at most 99.*, those .* trained on at most 89.*: it may be scaled"),
        ({"kind": "int16"}, r"has 3 bands of int16, the network was trained on files of 3 bands of uint16: its values"),
        ({"count": 5}, r"has 5 bands of uint16, .* files of 3 bands of uint16: bands=\[2, 1, 0\] may be others here"),
    ],
)
def test_files_that_do_not_fit(tmp_path, given, message):
    reader = ImageReader([2, 1, 0], {"range": [0, 900]})
    record = make_record(reader, [save(tmp_path / "a.tif", 0, 900)])
    with reader.open(save(tmp_path / "b.tif", **{"low": 0, "high": 900, **given})) as image:
        note = misfit(image, record)
    assert note is None if message is None else re.search(message, str(note)), note


def test_stretched_by_itself_a_file_has_no_range_to_fit(tmp_path):
    reader = ImageReader(None, [2, 98])
    record = make_record(reader, [save(tmp_path / "a.tif", 0, 900)])
    with reader.open(save(tmp_path / "b.tif", 0, 9000)) as image:
        assert misfit(image, record) is None
        assert misfit(image, record | {"seen": None}) is None


def test_percentiles_over_all_files(tmp_path):
    files = [save(tmp_path / "a.tif", 0, 100), save(tmp_path / "b.tif", 900, 1000)]
    (tmp_path / "c.tif").write_bytes(b"no image")
    shown: list[Any] = []
    found = pooled_range([*files, tmp_path / "c.tif"], None, (0, 100), lambda *parts: shown.append(parts))
    np.testing.assert_array_equal(found, [[0, 1000]] * 3)
    assert shown == [(0, 3), (1, 3), (2, 3), (3, 3)]
    with pytest.raises(DataError, match=r"c.tif cannot be read"):
        pooled_range([tmp_path / "c.tif"], None, (0, 100), nothing)
    tif(tmp_path / "d.tif", np.zeros((1, 4, 4), np.uint16))
    with pytest.raises(DataError, match=r"differ in their number of bands: name them \(config: dataset.bands\)"):
        pooled_range([*files, tmp_path / "d.tif"], None, (0, 100), nothing)


def test_records_of_preparations(tmp_path):
    image = tmp_path / "train" / "images" / "a.png"
    assert prepared_record(tmp_path) is None and patch_folder(image) is None
    (tmp_path / "index.json").write_text("{")
    assert prepared_record(tmp_path) is None and patch_folder(image) == tmp_path
    (tmp_path / "index.json").write_text(json.dumps({"input": {"bands": [1]}}))
    assert prepared_record(tmp_path) == {"bands": [1]}


@pytest.mark.parametrize(
    ("kept", "bands", "places"),
    [
        (None, None, None),
        (None, [3, 2, 1], None),  # as they are: three by their tags, which may be these
        ([3, 0, 1], None, None),
        ([3, 0, 1], (3, 0, 1), None),
        ([3, 0, 1], (0, 3, 1), [1, 0, 2]),
        ([0, 1, 2, 3], (3, 0, 1), [3, 0, 1]),
        ([4, 5, 6, 7], (4, 5, 6, 7), [0, 1, 2, 3]),
        ([5], [5], [0]),
    ],
)
def test_bands_of_patches(tmp_path, kept, bands, places):
    (tmp_path / "index.json").write_text(json.dumps({"input": {"bands": kept}}))
    assert patch_bands(tmp_path, bands) == places


@pytest.mark.parametrize(("kept", "bands"), [(None, [0, 1, 2, 3]), ([0, 1, 2, 3], None), ([0, 1, 2, 3], [4, 1, 2, 3])])
def test_bands_that_patches_lack(tmp_path, kept, bands):
    (tmp_path / "index.json").write_text(json.dumps({"input": {"bands": kept}}))
    named = ("red, green, blue" if each is None else str(each) for each in (kept, bands))
    text = "hold the bands {} of the files that they were cut from, not {}: prepare them".format(*map(re.escape, named))
    with pytest.raises(DataError, match=text):
        patch_bands(tmp_path, bands)


def test_an_index_that_is_nested_too_deeply_is_none(tmp_path: Path):
    (tmp_path / "index.json").write_text("[" * 100_000)
    assert prepared_record(tmp_path) is None
    assert indexed_census((), tmp_path, "train") is None
