from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from pfseg.data.cache import cache_folder, cached_array, key_of, stat_of
from pfseg.files import lock, replacing

ARRAY = np.arange(12, dtype=np.int32).reshape(3, 4)


def fail() -> np.ndarray:
    raise AssertionError("built again")


def test_built_once_and_loaded_afterwards(tmp_path):
    np.testing.assert_array_equal(cached_array([tmp_path / "a"], "x", lambda: ARRAY), ARRAY)
    found = cached_array([tmp_path / "a"], "x", fail)
    np.testing.assert_array_equal(found, ARRAY)
    assert found.dtype == ARRAY.dtype
    with pytest.raises(AssertionError, match="built again"):
        cached_array([tmp_path / "a"], "y", fail)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_built_again(tmp_path, damage):
    cached_array([tmp_path], "x", lambda: ARRAY)
    data = bytearray((tmp_path / "x").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x").write_bytes({"cut": data[:-9], "flipped": data, "empty": b"", "other": b"text" * 20}[damage])
    np.testing.assert_array_equal(cached_array([tmp_path], "x", lambda: ARRAY + 1), ARRAY + 1)
    np.testing.assert_array_equal(cached_array([tmp_path], "x", fail), ARRAY + 1)


def test_the_first_folder_that_can_be_written_is_used(tmp_path):
    (tmp_path / "file").write_text("")
    cached_array([tmp_path / "file" / "a", tmp_path / "b"], "x", lambda: ARRAY)
    assert (tmp_path / "b" / "x").is_file()
    np.testing.assert_array_equal(cached_array([tmp_path / "file" / "a"], "x", lambda: ARRAY), ARRAY)


def build_slowly(folder: Path) -> np.ndarray:
    def build() -> np.ndarray:
        with open(folder / "built", "a") as file:
            file.write("once\n")
        time.sleep(0.5)
        return ARRAY

    return cached_array([folder], "x", build)


def test_several_processes_build_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        for found in pool.map(build_slowly, [tmp_path] * 3, chunksize=1):
            np.testing.assert_array_equal(found, ARRAY)
    assert (tmp_path / "built").read_text() == "once\n"


def hold(path: Path) -> None:
    with lock(path), replacing(path) as new:
        new.write_text("half")
        (path.parent / "holding").touch()
        time.sleep(60)


def test_a_killed_process_leaves_no_lock_and_no_half_file(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "x",))
    process.start()
    while not (tmp_path / "holding").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    np.testing.assert_array_equal(cached_array([tmp_path], "x", lambda: ARRAY), ARRAY)


def test_keys_and_times(tmp_path):
    assert key_of(1, ["a"]) == key_of(1, ["a"]) != key_of(1, ["b"])
    assert stat_of(tmp_path / "gone") == (0, 0)
    (tmp_path / "x").write_bytes(b"123")
    assert stat_of(tmp_path / "x")[0] == 3


def test_where_it_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("PFSEG_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "pfseg"


def test_without_a_home_that_can_be_written_to_it_is_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PFSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pfseg"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"pfseg-{os.getuid()}"

    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"pfseg-{os.getuid()}"
