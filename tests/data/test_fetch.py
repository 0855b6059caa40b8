"""Downloads from a server in this process: whole, broken off, resumed, of the wrong content, and from nowhere."""

import functools
import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from score_sde.data import DataError, fashion_mnist, fetch, mnist

CONTENT = np.random.default_rng(0).bytes(300_000)
FILE = "file.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; `server.ranges` obeys Range, `server.stop_at` closes the connection at this byte, once."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path.lstrip("/"), asked))
        if (content := self.server.files.get(self.path.lstrip("/"))) is None:
            return self.send_error(404, "Not Found")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if first and first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return None
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        stop, self.server.stop_at = self.server.stop_at, None
        self.wfile.write(content[first:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked, server.ranges, server.stop_at = {FILE: CONTENT}, [], True, None
        publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/", {FILE: CONTENT})
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(monkeypatch, url, files):
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(fetch.PUBLISHED, "mnist", fetch.Published(url, sha256))


def failure(*arguments):
    with pytest.raises(DataError) as caught:
        fetch.fetch("mnist", *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        assert fetch.fetch("mnist", tmp_path) == tmp_path
    assert (tmp_path / FILE).read_bytes() == CONTENT and names(tmp_path) == [FILE]
    assert server.asked == [(FILE, None)]


def test_into_the_cache_by_default(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path / "cache"))
    assert fetch.fetch("mnist") == tmp_path / "cache" / "mnist"
    assert (tmp_path / "cache" / "mnist" / FILE).read_bytes() == CONTENT


def test_a_download_that_broke_off_goes_on(server, tmp_path):
    server.stop_at = 123_456
    message = failure(tmp_path)
    assert "broke off at 123,456 of 300,000 bytes" in message and "run again" in message
    assert names(tmp_path) == [FILE + ".part"]
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT and names(tmp_path) == [FILE]
    assert server.asked == [(FILE, None), (FILE, "bytes=123456-")]


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT and server.asked == [(FILE, "bytes=1000-")]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_whole_or_longer(server, tmp_path, length):
    (tmp_path / f"{FILE}.part").write_bytes((CONTENT + b"extra")[:length])
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={length}-", None][: 1 + (length > len(CONTENT))]


@pytest.mark.parametrize("start", [b"", b"x" * 100])
def test_the_wrong_content_is_refused_and_not_kept(server, tmp_path, start):
    (tmp_path / f"{FILE}.part").write_bytes(start)
    server.files[FILE] = b"x" * 50 + CONTENT[50:]
    message = failure(tmp_path)
    got = start + server.files[FILE][len(start) :]
    assert hashlib.sha256(CONTENT).hexdigest() in message and hashlib.sha256(got).hexdigest() in message
    assert FILE in message and names(tmp_path) == []
    server.files[FILE] = CONTENT
    fetch.fetch("mnist", tmp_path)


def test_a_file_that_is_there_is_never_replaced(server, tmp_path):
    (tmp_path / FILE).write_bytes(b"mine")
    message = failure(tmp_path)
    assert str(tmp_path / FILE) in message and "config.data.dir" in message
    assert hashlib.sha256(b"mine").hexdigest() in message
    assert (tmp_path / FILE).read_bytes() == b"mine" and server.asked == []


def test_an_error_of_the_server(server, tmp_path):
    server.files.clear()
    assert "Not Found" in failure(tmp_path) and names(tmp_path) in ([], [FILE + ".part"])


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_without_network_one_line_says_what_to_do(host, tmp_path, monkeypatch):
    publish(monkeypatch, f"http://{host}/", {FILE: CONTENT})
    began = time.monotonic()
    message = failure(tmp_path)
    assert time.monotonic() - began < 10
    assert f"cannot fetch {FILE} from http://{host}/{FILE}: " in message
    assert hashlib.sha256(CONTENT).hexdigest() in message and "config.data.dir" in message


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert FILE in failure(tmp_path / "file" / "folder")


def test_two_downloads_of_one_file(server, tmp_path):
    import fcntl

    with open(tmp_path / f"{FILE}.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process" in failure(tmp_path)
    assert server.asked == []


def test_unknown_name():
    with pytest.raises(ValueError, match="cifar10, fashion_mnist, mnist, got 'imagenet'"):
        fetch.fetch("imagenet")


def idx_files():
    """The four files of MNIST, of three images each."""

    def packed(axes, array):
        header = bytes([0, 0, 8, axes]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        return gzip.compress(header + array.tobytes())

    images, labels = np.arange(3 * 784).reshape(3, 28, 28).astype(np.uint8), np.array([1, 2, 9], np.uint8)
    kinds = {"images-idx3-ubyte.gz": packed(3, images), "labels-idx1-ubyte.gz": packed(1, labels)}
    return {f"{split}-{kind}": content for split in ("train", "t10k") for kind, content in kinds.items()}


def test_a_data_set_without_a_folder_is_fetched_on_first_use(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_DATA", str(tmp_path))
    server.files = idx_files()
    publish(monkeypatch, f"http://127.0.0.1:{server.server_port}/", server.files)
    source = mnist("test")
    np.testing.assert_array_equal(source[np.arange(3)]["label"], [1, 2, 9])
    mnist("train")
    assert len(server.asked) == 4


def test_a_folder_that_is_given_is_read_and_nothing_is_downloaded(server, tmp_path):
    with pytest.raises(DataError, match="score_sde.data.fetch mnist"):
        mnist("train", tmp_path)
    for name, content in idx_files().items():
        (tmp_path / name).write_bytes(content)  # not those that the server has: no checksum is asked for
    assert len(mnist("train", tmp_path)) == len(fashion_mnist("test", tmp_path)) == 3
    assert server.asked == []


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(server, tmp_path, capsys):
    assert fetch.main(["mnist", f"--dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n" and (tmp_path / FILE).exists()
    server.files.clear()
    assert fetch.main(["mnist", f"--dir={tmp_path / 'other'}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: cannot fetch") and captured.err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["imagenet"], ["mnist", "cifar10"], ["mnist", "--dir="], ["mnist", "--out=x"]])
def test_a_mistake_gets_one_line(argv, capsys):
    assert fetch.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "cifar10, fashion_mnist, mnist" in captured.err and "--help" in captured.err


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-W", "error", "-m", "score_sde.data.fetch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and "--dir=FOLDER" in done.stdout
    for name in fetch.PUBLISHED:
        assert name in done.stdout


def test_checksums_are_of_the_right_form():
    for published in fetch.PUBLISHED.values():
        assert published.url.endswith("/")
        assert all(len(value) == 64 and int(value, 16) for value in published.sha256.values())
