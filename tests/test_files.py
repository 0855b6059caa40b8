"""Files are whole or not there; a lock has one holder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from score_sde import files
from score_sde.files import WorkdirError, locked, write_arrays, write_bytes, write_json


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_and_nothing_else(call, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_):
        assert path.read_bytes() == b"old"
        raise OSError("disk full")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(WorkdirError, match="cannot write .*file: disk full. What was there before is untouched"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (np.float64("-inf"), "nan", None, 3)}})

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "a": None, "b": [1.5, None], "c": {"d": [None, "nan", None, 3]},
    }  # fmt: skip


def test_arrays_come_back_without_pickle(tmp_path):
    x = np.arange(6, dtype=np.int16).reshape(2, 3)
    write_arrays(tmp_path / "x.npz", x=x, flag=np.array([True, False]))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert set(found) == {"x", "flag"} and found["x"].dtype == np.int16
        np.testing.assert_array_equal(found["x"], x)


TRY = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(7)
"""


def can_lock(directory):
    code = subprocess.run([sys.executable, "-c", TRY, directory / ".lock"], timeout=60).returncode
    assert code in (0, 7)
    return code == 0


def test_a_lock_has_one_holder(tmp_path):
    directory = tmp_path / "run"
    with locked(directory):
        with pytest.raises(WorkdirError, match=rf"run is in use .*process {os.getpid()}"), locked(directory):
            pass
        assert not can_lock(directory)
    assert can_lock(directory)
    with locked(directory):  # the file that is left does not hold
        pass


def test_a_lock_ends_with_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_a_folder_is_known_to_be_writable_before_the_work(tmp_path):
    (tmp_path / "file").write_text("kept")
    files.check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkdirError, match="cannot write to"):
            files.check_writable(place)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WorkdirError, match="cannot write to the workdir"), locked(place):
            pass
    assert (tmp_path / "file").read_text() == "kept"


def test_too_little_space_is_told(tmp_path):
    files.check_space(tmp_path, 1)
    with pytest.raises(WorkdirError, match="MB left, and checkpoints take 1,000,000,000,000 MB"):
        files.check_space(tmp_path, 10**18)


def test_what_killed_writers_have_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / ".a.npz.x1y2z3.partial").write_bytes(b"half")
    (folder / ".own").write_bytes(b"a user's")
    file, name = files._temporary(folder / "b.npz")
    files.remove_temporaries(tmp_path)
    assert {p.name for p in folder.iterdir()} == {".own", Path(name).name}
    file.close()
    files.remove_temporaries(tmp_path)
    assert [p.name for p in folder.iterdir()] == [".own"]
