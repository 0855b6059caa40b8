"""The shipped digits against what their authors published."""

import importlib

import numpy as np
import pytest

from score_sde.data import DataError, digits

MODULE = importlib.import_module("score_sde.data.digits")  # the attribute of this name is the function

# Class counts of the test part (optdigits.tes) as stated in the documentation of the UCI repository.
UCI_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def everything(split):
    source = digits(split)
    return source[np.arange(len(source))]


@pytest.mark.parametrize(("split", "size"), [("train", 1437), ("test", 360)])
def test_split(split, size):
    source = digits(split)
    assert (len(source), source.shape, source.levels, source.num_classes) == (size, (8, 8, 1), 17, 10)
    assert source.x.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(source.x), np.arange(17))  # every level is used


def test_class_counts_are_the_published_ones():
    counts = {split: np.bincount(everything(split)["label"], minlength=10) for split in ("train", "test")}
    np.testing.assert_array_equal(counts["train"] + counts["test"], UCI_COUNTS)
    # A fifth of about 180 is 36; a random split would leave a class within 3 sqrt(180 0.2 0.8) = 16 of that.
    assert np.abs(counts["test"] - 36).max() <= 16


def test_splits_are_disjoint():
    train, test = ({image.tobytes() for image in everything(split)["x"]} for split in ("train", "test"))
    assert len(train) + len(test) == 1797  # no two digits of the set are equal
    assert not train & test


def test_unknown_split():
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        digits("valid")


@pytest.mark.parametrize("content", [None, b"", b"not an archive", "truncated", "pickle"])
def test_damaged_file_is_named(tmp_path, monkeypatch, content):
    path = tmp_path / "digits.npz"
    if content == "truncated":
        path.write_bytes(MODULE._FILE.read_bytes()[:-100])
    elif content == "pickle":
        np.savez(path, images=np.array([print], dtype=object), labels=np.zeros(1))
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(MODULE, "_FILE", path)
    with pytest.raises(DataError) as caught:
        digits("train")
    assert str(path) in str(caught.value) and "reinstall" in str(caught.value) and "\n" not in str(caught.value)
