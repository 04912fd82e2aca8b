from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pfseg.errors import WriteError
from pfseg.tracking.records import Follower, RecordWriter, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_records(path)]


def test_a_row_is_one_line_of_strict_json(path: Path) -> None:
    writer = RecordWriter(path)
    fields = {"train/loss": np.float32(0.5), "lr": float("nan"), "steps": (np.int64(3), float("inf")), "file": path}
    writer.write("train", step=7, epoch=1, **fields)
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row.pop("time") > 1e9
    assert row == {
        "event": "train", "step": 7, "epoch": 1,
        "train/loss": 0.5, "lr": None, "steps": [3, None], "file": str(path),
    }  # fmt: skip


def test_a_torn_last_line_is_removed_on_opening(path: Path) -> None:
    RecordWriter(path).write("train", step=1, epoch=0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "tra')
    assert steps(path) == [1]
    RecordWriter(path)
    assert path.read_bytes() == whole
    path.write_bytes(b'{"event": "tra')
    RecordWriter(path)
    assert path.read_bytes() == b""


def test_long_work_leaves_few_progress_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, clock = RecordWriter(path), iter(np.arange(0, 100, 0.01))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for text in ("validating", "evaluating"):
        for done in range(201):
            writer.progress(text, done, 200, step=7, epoch=1)
    rows = list(read_records(path))
    assert {(row["event"], row["step"], row["epoch"], row["total"]) for row in rows} == {("progress", 7, 1, 200)}
    for text in ("validating", "evaluating"):
        counts = [row["done"] for row in rows if row["text"] == text]
        assert counts[0] == 0
        assert counts[-1] == 200
        assert 4 <= len(counts) <= 6  # of 201 in two seconds


def test_drop_after_keeps_the_steps_up_to_the_checkpoint(path: Path) -> None:
    writer = RecordWriter(path)
    for step in range(5):
        writer.write("train", step=step, epoch=0)
    writer.drop_after(2)
    writer.write("train", step=3, epoch=0)
    assert steps(path) == [0, 1, 2, 3]


def test_a_full_disk_leaves_whole_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write = RecordWriter(path), os.write
    writer.write("train", step=1, epoch=0)
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:9]))
    with pytest.raises(WriteError, match=r"metrics\.jsonl can't be written \(No space left.*free some space"):
        writer.write("train", step=2, epoch=0)
    monkeypatch.undo()
    writer.write("train", step=3, epoch=0)
    assert steps(path) == [1, 3]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"metrics\.jsonl can't be written .*check the folder"):
        RecordWriter(tmp_path / "file" / "metrics.jsonl")


def test_a_follower_sees_whole_lines_only(path: Path) -> None:
    follower = Follower(path)
    assert list(follower.rows()) == []
    RecordWriter(path).write("train", step=1, epoch=0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    assert [row["step"] for row in follower.rows()] == [1]
    assert list(follower.rows()) == []
    with path.open("ab") as file:
        file.write(whole[10:])
    assert [row["step"] for row in follower.rows()] == [1]


def test_a_follower_skips_what_was_there_even_if_torn(path: Path) -> None:
    RecordWriter(path).write("train", step=1, epoch=0)
    with path.open("ab") as file:
        file.write(b'{"event": "start", "torn')
    follower = Follower(path)
    RecordWriter(path).write("train", step=2, epoch=0)
    assert [row["step"] for row in follower.rows()] == [2]


@pytest.mark.parametrize("polled", [False, True])
def test_a_follower_goes_on_in_a_shortened_file(path: Path, polled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RecordWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 1e9)  # an earlier run
        for step in range(1, 5):
            writer.write("train", step=step, epoch=0)
    follower = Follower(path)
    writer.drop_after(2)
    if polled:
        assert list(follower.rows()) == []
    for step in range(3, 9):
        writer.write("train", step=step, epoch=0)
    assert [row["step"] for row in follower.rows()] == [3, 4, 5, 6, 7, 8]
