"""What a file may ask for: regular files only, memory within limits, which a variable of the environment raises."""

import gzip
import os
import threading

import pytest

from score_sde.reading import LIMITS, RegularFile, Unpacked, check_limit, limit, printable, read_bytes, read_text


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    assert read_bytes(path) == path.read_bytes()
    with RegularFile(path) as file:
        file.seek(100)
        assert file.read(3) == b"def" and file.read(2**40) == path.read_bytes()[103:] and file.read() == b""


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "circle"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "file"
    {
        "FIFO": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": lambda: path.mkdir(),
        "circle": lambda: path.symlink_to(path),
    }[kind]()  # fmt: skip
    with pytest.raises(OSError, match="regular file, got a|symbolic links"):
        read_bytes(path)


def test_a_path_with_a_zero_is_refused():
    with pytest.raises(OSError, match="expected a path, got .*embedded null"):
        read_bytes("a\0b")


def test_memory_is_bounded_by_the_limit_or_by_the_file_s_room_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "real").write_bytes(os.urandom(2**16))
    (tmp_path / "sparse").write_bytes(b"")
    os.truncate(tmp_path / "sparse", 2**16)
    monkeypatch.setenv("SCORE_SDE_MAX_BYTES", "1000")
    assert len(read_bytes(tmp_path / "real")) == 2**16
    with pytest.raises(OSError, match="at most 1,000 bytes, got 65,536 .set SCORE_SDE_MAX_BYTES"):
        read_bytes(tmp_path / "sparse")
    monkeypatch.setenv("SCORE_SDE_MAX_BYTES", "70000")
    assert len(read_bytes(tmp_path / "sparse")) == 2**16


def test_what_is_unpacked_ends_at_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(2**20)))
    monkeypatch.setenv("SCORE_SDE_MAX_BYTES", "500000")
    with RegularFile(path) as file, gzip.GzipFile(fileobj=file) as packed, pytest.raises(OSError, match="500,000"):
        Unpacked(packed, file).read()


def test_limits_are_whole_numbers_of_the_environment(monkeypatch):
    for name, value in LIMITS.items():
        assert limit(name) == value
        check_limit(name, value, "bytes")
        with pytest.raises(OSError, match=name):
            check_limit(name, value + 1, "bytes")
        monkeypatch.setenv(name, "-1")
        with pytest.raises(OSError, match=f"whole number in the environment variable {name}, got '-1'"):
            limit(name)


def test_text_is_small_and_utf_8(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b'"\xc3\xbc"')
    assert read_text(tmp_path / "a.json") == '"ü"'
    monkeypatch.setenv("SCORE_SDE_MAX_TEXT", "3")
    with pytest.raises(OSError, match="at most 3 bytes of text, got 4"):
        read_text(tmp_path / "a.json")


def test_what_is_printed_moves_no_cursor():
    assert printable("a\x1b[2J\r\n\tb\udcff ü") == "a\\x1b[2J b\\udcff ü"
    assert printable("x" * 1000, 10) == "xxxxxxx..."


def test_images_wait_until_there_is_room(monkeypatch):
    from importlib import import_module

    monkeypatch.setenv("SCORE_SDE_MAX_PIXELS", "100")
    room, order, inside = import_module("score_sde.data.images")._Room(), [], threading.Event()

    def decode():
        with room.take(60):
            order.append("second")

    with room.take(60):
        waiting = threading.Thread(target=decode)
        waiting.start()
        inside.wait(0.05)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    with room.take(200):  # larger than all room, which another check refuses: alone
        pass
