from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from privileges import permissions_hold

from pfseg.errors import WriteError
from pfseg.files import (
    load_json,
    load_yaml,
    lock,
    parse_json,
    program,
    replacing,
    shown,
    write_atomic,
    write_fault,
)


def test_paths_are_shown_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "a") == "runs/a"
    assert shown("runs/a") == "runs/a"
    assert shown("/elsewhere") == "/elsewhere"


def test_a_file_is_written_whole_with_its_folder(tmp_path: Path):
    file = tmp_path / "new" / "result.json"
    write_atomic(file, "ä")
    assert file.read_bytes() == "ä".encode()
    write_atomic(file, b"b", sync=False)
    assert file.read_bytes() == b"b"
    assert [item.name for item in file.parent.iterdir()] == ["result.json"]


def test_a_full_disk_is_told_from_other_errors():
    with pytest.raises(OSError) as full, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"a")
    assert str(write_fault(full.value)).startswith("a file can't be written (No space left on device); free some space")
    assert write_fault(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None
    assert write_fault(ValueError()) is None


def test_the_old_file_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "result.json"
    write_atomic(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"result\.json can't be written \(No space left on device\); free some space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [("file/result.json", "Not a directory|File exists"), ("x" * 300, "File name too long"), ("folder", "directory")],
)
def test_a_place_that_cannot_be_written_is_an_error(name: str, cause: str, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(WriteError, match=rf"can't be written \(.*({cause}).*\); check the folder and its permissions"):
        write_atomic(tmp_path / name, "text")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_permission_is_an_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    with permissions_hold(), pytest.raises(WriteError, match="Permission denied"):
        write_atomic(tmp_path / "x", "text")


def test_what_fails_is_removed(tmp_path: Path):
    with pytest.raises(ValueError, match="no"), replacing(tmp_path / "x") as new:
        new.write_text("half")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_keeps_others_out_until_its_process_is_killed(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from pfseg.files import lock\n"
    code += "with lock(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new" / "x")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(TimeoutError), lock(tmp_path / "new" / "x", wait=False):
        pass
    holder.kill()
    holder.communicate()
    with lock(tmp_path / "new" / "x", wait=False):
        pass


def test_without_locks_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with lock(tmp_path / "x"):
        pass


def test_a_long_wait_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """The launcher takes the line as progress of a rank that waits."""
    monkeypatch.setattr("pfseg.files._PATIENCE_SECONDS", 0.2)
    code = "import sys, time; from pathlib import Path; from pfseg.files import lock\n"
    code += "with lock(Path(sys.argv[1])): print(flush=True); time.sleep(1)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with lock(tmp_path / "x"):
        assert f"waiting for another process that holds {tmp_path}/x.lock" in caplog.text
    holder.communicate()


def test_programs_of_packages_are_found_beside_python():
    assert program("mpicc") == str(Path(sys.executable).parent / "mpicc")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: 1\n\tb: 2\n", r":2 can't be read as YAML: found a tab"),
        ("a: {b: 1\n", r":2 can't be read as YAML: did not find expected"),
        ("a: !!python/object/apply:os.getcwd []\n", r":1 can't be read as YAML: could not determine a constructor"),
        ("a: " + "[" * 5000, r":1 can't be read as YAML: exceeded maximum nesting depth"),
        (BOMB, r" can't be read as YAML: its aliases unfold to an absurd size"),
        ("&a [*a]", r" can't be read as YAML: its aliases unfold to an absurd size"),
        ("a: \udcff", r" can't be read as YAML: 'utf-8' codec can't decode"),
        ("9" * 5000, r" can't be read as YAML: Exceeds the limit"),
    ],
    ids=["tab", "brace", "tag", "deep", "bomb", "circle", "bytes", "number"],
)
@pytest.mark.timeout(20)
def test_damaged_yaml_is_named_in_one_line(tmp_path: Path, content: str, text: str):
    file = tmp_path / "a.yaml"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{file}{text}") as error:
        load_yaml(file)
    assert "\n" not in str(error.value)


def test_yaml_is_read_with_its_aliases(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\n")
    assert load_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2]}
    assert load_yaml(tmp_path / "none.yaml") is None
    with pytest.raises(ValueError, match=f"^{tmp_path} can't be read: Is a directory"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("1" + "0" * 400, r"the number 10+\.\.\. is too large"),
        ("{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_absurd_json_is_damaged_json(tmp_path: Path, content: str | bytes, text: str):
    with pytest.raises(ValueError, match=text):
        parse_json(content)
    (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert load_json(tmp_path / "a.json") is None
    assert load_json(tmp_path / "none.json") is None
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
