"""Arrays of any shape from .npy and .npz files; contradictions and damage are refused with the file's name."""

import numpy as np
import pytest

from score_sde.data import DataError, array_shape, arrays, batch_indices, batches

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((23, 5))
PIXELS = RNG.integers(0, 256, (23, 4, 3, 2), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "data.npy"


def everything(split, path, **options):
    source = arrays(split, str(path), **options)
    return source, source[np.arange(len(source))]


def error(path, split="train", **options):
    with pytest.raises(DataError) as caught:
        arrays(split, path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    "x, given, levels",
    [
        (VECTORS, None, None),
        (VECTORS.astype(np.float32), None, None),
        (RNG.standard_normal((23, 2, 3, 4, 5)).astype(np.float16), None, None),
        (PIXELS, None, 256),
        (PIXELS // 64, 4, 4),
        (RNG.integers(0, 1000, (23, 2)), 1000, 1000),
    ],
    ids="float64 float32 volumes bytes four-levels int64".split(),
)
def test_one_file_is_split_by_every_tenth_example(file, x, given, levels):
    np.save(file, x)
    assert array_shape(file, levels=given) == (x.shape[1:], levels)
    for split, rows in (("test", [0, 10, 20]), ("train", [n for n in range(23) if n % 10])):
        source, batch = everything(split, file, levels=given)
        assert (len(source), source.shape, source.levels, source.num_classes) == (len(rows), x.shape[1:], levels, None)
        np.testing.assert_array_equal(batch["x"], x[rows])
        assert batch.keys() == {"x"}


def test_npz_with_labels(tmp_path):
    labels = np.arange(23) % 4
    np.savez(tmp_path / "data.npz", x=VECTORS, labels=labels)
    source, batch = everything("test", tmp_path / "data.npz")
    assert source.num_classes == 4
    np.testing.assert_array_equal(batch["label"], labels[::10])
    np.testing.assert_array_equal(batch["x"], VECTORS[::10])


def test_given_splits(tmp_path):
    np.savez_compressed(tmp_path / "train.npz", x=VECTORS, labels=np.arange(23))
    np.save(tmp_path / "test.npy", -VECTORS[:4])
    np.testing.assert_array_equal(everything("train", tmp_path)[1]["x"], VECTORS)
    np.testing.assert_array_equal(everything("test", tmp_path)[1]["x"], -VECTORS[:4])
    assert array_shape(tmp_path) == ((5,), None)


def test_a_npy_file_is_mapped_not_read(file):
    np.save(file, PIXELS)
    source = arrays("train", file)
    base = source.source.x
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_pipeline_resumes_on_a_memory_map(file):
    np.save(file, VECTORS)

    def take(start, count):
        stream = batches(arrays("train", file), 6, seed=2, start=start)
        return np.stack([next(stream)["x"] for _ in range(count)])

    run = take(0, 9)
    np.testing.assert_array_equal(take(4, 5), run[4:])
    np.testing.assert_array_equal(run[7], arrays("train", file)[batch_indices(7, 6, 20, seed=2)]["x"])


def changed(x, index, value):
    x = x.copy()
    x[index] = value
    return x


CONTENT = {  # array; options; part of the message
    "nan": (changed(VECTORS, (7, 1), np.nan), {}, "x must be finite, got nan or inf in example 7"),
    "inf": (changed(VECTORS, (20, 0), -np.inf), {}, "nan or inf in example 20"),
    "beyond float32": (changed(VECTORS, (3, 0), 1e39), {}, "in example 3"),
    "below 0": (PIXELS.astype(int) - 1, dict(levels=256), "x must lie in 0..255, got -1.."),
    "too large": (PIXELS, dict(levels=200), "x must lie in 0..199"),
    "no levels": (PIXELS.astype(int), {}, "expected config.data.levels for int64"),
    "levels of real numbers": (VECTORS, dict(levels=4), "expected whole numbers for config.data.levels=4, got float64"),
    "objects": (np.array([[1, "a"]], dtype=object), {}, "without pickled objects"),
    "words": (np.array([["a"], ["b"]]), {}, "whole or real numbers"),
    "complex": (VECTORS + 0j, {}, "whole or real numbers"),
    "switches": (VECTORS > 0, {}, "whole or real numbers"),
    "another byte order": (VECTORS.astype(">f4"), {}, "byte order, got >f4"),
    "numbers": (VECTORS[:, 0], {}, "expected x of shape (N, *shape) with N >= 1, got (23,)"),
    "one number": (np.array(1.0), {}, "got ()"),
    "no examples": (VECTORS[:0], {}, "got (0, 5)"),
    "one example": (VECTORS[:1], {}, "at least two examples"),
}


@pytest.mark.parametrize("case", CONTENT)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_what_cannot_be_used(tmp_path, case, suffix):
    x, options, message = CONTENT[case]
    path = tmp_path / f"data{suffix}"
    np.save(path, x) if suffix == ".npy" else np.savez(path, x=x)
    assert message in error(path, **options)


LABELS = {
    "too few": (np.arange(22), "expected 23 whole numbers as labels, got int64 (22,)"),
    "one-hot": (np.eye(23, dtype=int), "(23, 23)"),
    "real": (np.arange(23.0), "float64"),
    "below 0": (np.arange(23) - 1, "labels must lie in 0..21, got -1..21"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_used(tmp_path, case):
    labels, message = LABELS[case]
    np.savez(tmp_path / "data.npz", x=VECTORS, labels=labels)
    assert message in error(tmp_path / "data.npz")


def test_shapes_that_differ_between_train_and_test(tmp_path):
    np.save(tmp_path / "train.npy", VECTORS)
    np.save(tmp_path / "test.npy", VECTORS[:, :4])
    assert "test.npy: expected examples of shape (5,), as to train on, got (4,)" in error(tmp_path, "test")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "damage",
    [lambda d: b"", lambda d: b"junk", lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: d[:20]],
    ids="empty foreign last-byte half header".split(),
)
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"data{suffix}"
    np.save(path, VECTORS) if suffix == ".npy" else np.savez_compressed(path, x=VECTORS)
    path.write_bytes(damage(path.read_bytes()))
    assert "expected a .npy or .npz file" in error(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_garbage_anywhere_is_found_or_changes_nothing(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    x = np.arange(400, dtype=np.uint16).reshape(40, 10)
    np.save(path, x) if suffix == ".npy" else np.savez_compressed(path, x=x)
    whole, found = path.read_bytes(), 0
    for position in range(0, len(whole) if suffix == ".npz" else 128, 7):  # an array in .npy has no checksum
        path.write_bytes(whole[:position] + b"\xff" * 5 + whole[position + 5 :])
        try:
            batch = arrays("train", path, levels=400)[np.arange(36)]
            np.testing.assert_array_equal(batch["x"], x[np.arange(40) % 10 > 0])
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
    assert found >= 8


def test_files_that_are_not_there(tmp_path):
    assert "no such file" in error(tmp_path / "nowhere") and "No such file" in error(tmp_path / "nowhere.npy")
    assert "expected train.npy or train.npz, got neither" in error(tmp_path)
    np.save(tmp_path / "train.npy", VECTORS)
    assert "expected test.npy or test.npz, got neither" in error(tmp_path, "test")
    np.savez(tmp_path / "train.npz", x=VECTORS)
    assert "got both" in error(tmp_path)
    np.savez(tmp_path / "other.npz", y=VECTORS)
    assert "members y without x" in error(tmp_path / "other.npz")
    (tmp_path / "table.csv").write_text("1,2")
    assert "a name that ends in .csv" in error(tmp_path / "table.csv")


def test_unknown_split(file):
    with pytest.raises(ValueError, match="'train' or 'test', got 'all'"):
        arrays("all", file)
