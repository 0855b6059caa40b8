"""ArraySource: what it returns, and that contradictory input is refused with expected, got and remedy."""

import subprocess
import sys

import numpy as np
import pytest

from score_sde.data import ArraySource, Source, Subset, split_rows

X = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
LABELS = np.array([2, 0, 1, 2, 2])


def test_gathers_by_index():
    source: Source = ArraySource(X, LABELS, levels=20, num_classes=3)
    assert (len(source), source.shape, source.levels, source.num_classes) == (5, (2, 2, 1), 20, 3)
    batch = source[np.array([3, 0, 3])]
    np.testing.assert_array_equal(batch["x"], X[[3, 0, 3]])
    np.testing.assert_array_equal(batch["label"], [2, 2, 2])
    assert (batch["x"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_without_classes_there_is_no_label():
    source = ArraySource(np.zeros((4, 2), np.float32))
    assert (source.shape, source.levels, source.num_classes) == ((2,), None, None)
    assert source[np.arange(3)].keys() == {"x"}


def test_a_batch_is_a_copy():
    source = ArraySource(X.copy(), levels=20)
    source[np.arange(5)]["x"][:] = 0
    np.testing.assert_array_equal(source.x, X)


@pytest.mark.parametrize(
    ("arguments", "expected", "got"),
    [
        (dict(x=np.zeros((0, 8, 8, 1))), "at least one example", "shape (0, 8, 8, 1)"),
        (dict(x=np.array(1.0)), "at least one example", "shape ()"),
        (dict(x=X), "floating-point", "uint8"),
        (dict(x=np.array([[0.0], [np.nan]])), "finite", "nan or inf in example 1"),
        (dict(x=np.array([[-np.inf], [0.0]])), "finite", "nan or inf in example 0"),
        (dict(x=X, levels=19), "0..18", "0..19"),
        (dict(x=X.astype(int) - 1, levels=20), "0..19", "-1..18"),
        (dict(x=X, levels=1), "at least 2", "1"),
        (dict(x=X.astype(float), levels=20), "integers", "float64"),
        (dict(x=X, levels=20, labels=LABELS), "go together", "labels without num_classes"),
        (dict(x=X, levels=20, num_classes=3), "go together", "num_classes without labels"),
        (dict(x=X, levels=20, num_classes=3, labels=LABELS[:4]), "(5,)", "(4,)"),
        (dict(x=X, levels=20, num_classes=3, labels=np.eye(5, dtype=int)), "(5,)", "(5, 5)"),
        (dict(x=X, levels=20, num_classes=3, labels=np.ones(5)), "integers", "float64"),
        (dict(x=X, levels=20, num_classes=2, labels=LABELS), "0..1", "0..2"),
        (dict(x=X, levels=20, num_classes=3, labels=LABELS - 1), "0..2", "-1..1"),
    ],
)
def test_refuses_bad_input(arguments, expected, got):
    with pytest.raises(ValueError) as caught:
        ArraySource(**arguments)
    before, after = str(caught.value).split(" got ", 1)
    assert expected in before and after.startswith(got)
    assert "\n" not in after and after.endswith(".") and ". " in after  # the sentence after "got" is the remedy


def test_large_arrays_are_looked_at_in_pieces():
    x = np.zeros((3, 2**23 + 1), np.float16)
    x[2, 5] = np.nan
    with pytest.raises(ValueError, match="nan or inf in example 2"):
        ArraySource(x)


def test_import_is_cheap():
    code = "import sys, score_sde.data; print({'grain', 'pooch', 'PIL', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_a_subset_has_the_rows_in_their_order():
    source: Source = Subset(ArraySource(X, LABELS, levels=20, num_classes=3), np.array([4, 0, 2]))
    assert (len(source), source.shape, source.levels, source.num_classes) == (3, (2, 2, 1), 20, 3)
    batch = source[np.array([2, 0])]
    np.testing.assert_array_equal(batch["x"], X[[2, 4]])
    np.testing.assert_array_equal(batch["label"], LABELS[[2, 4]])


@pytest.mark.parametrize("size", [1, 2, 10, 11, 1234])
def test_the_split_covers_everything_once_and_grows_in_place(size):
    train, test = split_rows("train", size), split_rows("test", size)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(size))
    assert len(test) == -(-size // 10)
    np.testing.assert_array_equal(split_rows("test", 2 * size)[: len(test)], test)
    with pytest.raises(ValueError, match="got 'valid'"):
        split_rows("valid", size)
