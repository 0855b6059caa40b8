"""MNIST's files made here byte by byte, read back pixel by pixel, then damaged in every way a download can be."""

import gzip

import numpy as np
import pytest

from score_sde.data import DataError, fashion_mnist, mnist

COUNTS = {"train": 7, "t10k": 3}
ROW, COLUMN = np.arange(28)[:, None], np.arange(28)


def pixels(prefix):
    """A formula for the value at each place, in which no two axes can be swapped unnoticed."""
    n = np.arange(COUNTS[prefix])[:, None, None]
    return (7 * ROW + 3 * COLUMN + ROW * COLUMN + 31 * n + len(prefix)) % 256


def labels(prefix):
    return (np.arange(COUNTS[prefix]) * 3 + len(prefix)) % 10


def images_file(prefix):
    data = bytearray([0, 0, 8, 3, 0, 0, 0, COUNTS[prefix], 0, 0, 0, 28, 0, 0, 0, 28])
    return bytes(data) + bytes(int(v) for v in pixels(prefix).ravel())


def labels_file(prefix):
    return bytes([0, 0, 8, 1, 0, 0, 0, COUNTS[prefix]]) + bytes(int(v) for v in labels(prefix))


@pytest.fixture(params=["gzipped", "unpacked"])
def directory(request, tmp_path):
    for prefix in COUNTS:
        for kind, data in (("images-idx3", images_file(prefix)), ("labels-idx1", labels_file(prefix))):
            path = tmp_path / f"{prefix}-{kind}-ubyte"
            if request.param == "unpacked":
                path.write_bytes(data)
            else:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    return tmp_path


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_round_trip(directory, load, split, prefix):
    source = load(split, str(directory))
    assert (len(source), source.shape, source.levels, source.num_classes) == (COUNTS[prefix], (28, 28, 1), 256, 10)
    batch = source[np.arange(len(source))]
    assert batch["x"].dtype == np.uint8
    np.testing.assert_array_equal(batch["x"][..., 0], pixels(prefix))
    np.testing.assert_array_equal(batch["label"], labels(prefix))


def with_count(data, count):
    return data[:4] + count.to_bytes(4, "big") + data[8:]


DAMAGE = {  # of train-images or train-labels; part of the message
    "no images": ("images", lambda data: None, "No such file or directory"),
    "no labels": ("labels", lambda data: None, "No such file or directory"),
    "empty": ("images", lambda data: b"", "got nothing"),
    "foreign": ("images", lambda data: b"<html>404</html>", "got 3c 68 74 6d"),
    "labels for images": ("images", lambda data: labels_file("train"), "with 3 axes, got 00 00 08 01"),
    "other numbers": ("images", lambda data: data[:2] + b"\x0d" + data[3:], "got 00 00 0d 03"),
    "cut short": ("images", lambda data: data[:-1], f"expected {16 + 7 * 784:,} bytes"),
    "header cut short": ("labels", lambda data: data[:6], "got 00 00 08 01"),
    "too long": ("labels", lambda data: data + b"1", "expected 15 bytes for shape (7,), got more"),
    "another size": (
        "images",
        lambda data: data[:8] + bytes([0, 0, 0, 14, 0, 0, 0, 56]) + data[16:],
        "28x28 pixels, got shape (7, 14, 56)",
    ),
    "no image in it": ("images", lambda data: with_count(data[:16], 0), "got shape (0, 28, 28)"),
    "too few labels": ("labels", lambda data: with_count(data[:-1], 6), "expected 7 labels, one for each image, got 6"),
    "a label above 9": ("labels", lambda data: data[:-1] + b"\x0a", "expected labels 0 to 9, got 10"),
}


def failure(directory):
    with pytest.raises(DataError) as caught:
        mnist("train", directory)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("get it with `python -m score_sde.data.fetch mnist`")
    return message


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named(directory, case):
    kind, damage, message = DAMAGE[case]
    (path,) = directory.glob(f"train-{kind}-*")
    packed = path.suffix == ".gz"
    data = damage(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    if data is None:
        path.unlink()
        path = path.with_name(path.name.removesuffix(".gz") + ".gz")  # the published name
    else:
        path.write_bytes(gzip.compress(data) if packed else data)
    found = failure(directory)
    assert found.startswith(f"{path}: ") and message in found
    assert len(mnist("test", directory)) == 3  # the other split is whole


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: d[:200] + b"\xff" * 9 + d[209:], lambda d: b"not gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(images_file("train"))))
    assert failure(tmp_path).startswith(f"{path}: expected a readable IDX file, got ")


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'train' or 'test', got 'all'"):
        mnist("all", tmp_path)
