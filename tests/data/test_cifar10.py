"""CIFAR-10 files made here row by row, read back pixel by pixel, then damaged in every way a download can be."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from score_sde.data import DataError, cifar10

FILES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
ROWS = 4
FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"


def pixel(file, row, y, x, channel):
    """A formula for the value at each place, in which no two axes can be swapped unnoticed."""
    return (41 * file + 17 * row + 7 * y + 3 * x + 89 * channel + y * x) % 256


def label(file, row):
    return (3 * file + row) % 10


def content(file):
    """One file as the format is documented: the label, then each plane (red, green, blue) row by row."""
    out = bytearray()
    for row in range(ROWS):
        out.append(label(file, row))
        out += bytes(pixel(file, row, y, x, channel) for channel in range(3) for y in range(32) for x in range(32))
    return bytes(out)


@pytest.fixture(scope="module")
def contents():
    return {name: content(i) for i, name in enumerate(FILES)}


def write_folder(folder, contents):
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def archived(contents, prefix=FOLDER + "/", level=6):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in {"batches.meta.txt": b"airplane\n", **contents}.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), level)


@pytest.fixture(params=["folder", "folder itself", "archive", "archive with ./"])
def directory(request, tmp_path, contents):
    if request.param.startswith("folder"):
        write_folder(tmp_path / FOLDER, contents)
        return tmp_path / FOLDER if "itself" in request.param else tmp_path
    prefix = "./cifar-10-batches-bin/" if "./" in request.param else FOLDER + "/"
    (tmp_path / ARCHIVE).write_bytes(archived(contents, prefix))
    return tmp_path


@pytest.mark.parametrize(("split", "files"), [("train", [0, 1, 2, 3, 4]), ("test", [5])])
def test_round_trip(directory, split, files):
    source = cifar10(split, str(directory))
    assert (len(source), source.shape, source.levels, source.num_classes) == (len(files) * ROWS, (32, 32, 3), 256, 10)
    file, row, y, x, channel = np.meshgrid(files, *map(np.arange, (ROWS, 32, 32, 3)), indexing="ij")
    expected = pixel(file, row, y, x, channel).reshape(-1, 32, 32, 3)
    batch = source[np.arange(len(source))]
    assert batch["x"].dtype == np.uint8
    np.testing.assert_array_equal(batch["x"], expected)
    np.testing.assert_array_equal(batch["label"], [label(f, r) for f in files for r in range(ROWS)])


def error(split, directory):
    with pytest.raises(DataError) as caught:
        cifar10(split, directory)
    message = str(caught.value)
    assert "\n" not in message and "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    return message


def test_nothing_there(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert error("train", directory) == (
            f"No CIFAR-10 at {directory}: expected cifar-10-batches-bin/data_batch_1.bin ... or cifar-10-binary.tar.gz;"
            " download it from https://www.cs.toronto.edu/~kriz/cifar.html and set config.data.dir"
        )


def test_a_file_of_the_folder_is_missing(tmp_path, contents):
    write_folder(tmp_path / FOLDER, {k: v for k, v in contents.items() if k != "data_batch_3.bin"})
    assert str(tmp_path / FOLDER / "data_batch_3.bin") in error("train", tmp_path)
    assert len(cifar10("test", tmp_path)) == ROWS  # the other split is whole


@pytest.mark.parametrize(
    ("damage", "got"),
    [(lambda d: d[:-1], "12,291 bytes"), (lambda d: b"", "0 bytes"), (lambda d: b"\x0a" + d[1:], "got 10")],
    ids=["truncated", "empty", "label above 9"],
)
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_damaged_file_is_named(tmp_path, contents, damage, got, form):
    contents = contents | {"data_batch_2.bin": damage(contents["data_batch_2.bin"])}
    if form == "folder":
        write_folder(tmp_path / FOLDER, contents)
    else:
        (tmp_path / ARCHIVE).write_bytes(archived(contents))
    message = error("train", tmp_path)
    assert "data_batch_2.bin" in message and str(tmp_path) in message and got in message


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    "make",
    [
        lambda contents: b"",
        lambda contents: b"<html>404</html>",
        lambda contents: gzip.compress(b"no archive inside"),
        lambda contents: archived(contents)[:2000],
        lambda contents: archived(contents)[:-6],
        lambda contents: flipped(archived(contents, level=0), 20_000),  # a pixel: only the checksum can tell
        lambda contents: flipped(archived(contents), 1000),
        lambda contents: archived({k: contents[k] for k in FILES[:2]}),
        lambda contents: archived({"something.else": b"x"}),
    ],
    ids="empty html foreign truncated tail bit-rot-stored bit-rot-deflated incomplete other".split(),
)
def test_a_damaged_archive_is_named(tmp_path, contents, make):
    (tmp_path / ARCHIVE).write_bytes(make(contents))
    assert str(tmp_path / ARCHIVE) in error("train", tmp_path)


def test_garbage_anywhere_in_the_archive(tmp_path, contents):
    whole = archived(contents)  # what zlib, gzip or tarfile makes of the garbage depends on where it lies
    for position in range(0, len(whole) - 99, 500):
        (tmp_path / ARCHIVE).write_bytes(whole[:position] + b"\xff" * 99 + whole[position + 99 :])
        assert str(tmp_path / ARCHIVE) in error("train", tmp_path)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'train' or 'test', got 'all'"):
        cifar10("all", tmp_path)
