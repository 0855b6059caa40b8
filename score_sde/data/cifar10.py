"""CIFAR-10 from its binary version (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

Five training files and one test file of 10,000 rows each.  A row is 3,073 bytes: one label, then the red, green and
blue planes of a 32x32 image.  The "Python version" of the archive is a pickle, which runs what its author wrote; it is
not read here.
"""

import gzip
import os
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from score_sde.data.sources import ArraySource, DataError, check_split, fetched
from score_sde.reading import RegularFile, Unpacked, printable, read_bytes

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_FOLDER = "cifar-10-batches-bin"
_ARCHIVE = "cifar-10-binary.tar.gz"
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_ROW = 1 + 3 * 32 * 32
_MEMBERS = 100  # of the archive at most; the published one has nine


def cifar10(split: str, directory: str | os.PathLike | None = None) -> ArraySource:
    """CIFAR-10, shape (32, 32, 3), 256 levels, 10 classes: 50,000 images to train on, 10,000 to test on.

    Files of the same form with fewer rows are read too, for smoke runs; `len` of the result says what was there.

    Args:
        split: 'train' or 'test'.
        directory: holds `cifar-10-batches-bin/` or `cifar-10-binary.tar.gz` (read in place), or is that folder; None
            reads the archive in the cache, which is downloaded first unless it is there.

    Raises:
        ValueError: another split is asked for.
        DataError: the files are missing, cut short or not CIFAR-10.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """
    check_split(split)
    directory, names = fetched("cifar10", directory), _FILES[split]
    folder = directory / _FOLDER if (directory / _FOLDER).is_dir() else directory
    if folder != directory or any((folder / name).exists() for name in names):
        files = [(folder / name, _read(folder / name)) for name in names]
    elif (directory / _ARCHIVE).is_file():
        files = _read_archive(directory / _ARCHIVE, names)
    else:
        raise DataError(
            f"No CIFAR-10 at {directory}: expected {_FOLDER}/{names[0]} ... or {_ARCHIVE}; "
            f"download it from {_PAGE} and set config.data.dir"
        )
    images, labels = zip(*(_decode(data, where) for where, data in files), strict=True)
    return ArraySource(np.concatenate(images), np.concatenate(labels), levels=256, num_classes=10)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror}; download it from {_PAGE}") from error


def _read_archive(archive: Path, names: list[str]) -> list[tuple[str, bytes]]:
    found = {}
    try:
        with RegularFile(archive) as file, gzip.GzipFile(fileobj=file) as packed, Unpacked(packed, file) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # "|": forwards only
                for number, member in enumerate(tar):
                    if number == _MEMBERS:
                        raise tarfile.TarError(f"more than {_MEMBERS} members")
                    name = PurePosixPath(member.name).name
                    if member.isfile() and not member.issparse() and name in names:
                        found[name] = tar.extractfile(member).read()
            while stream.read(1 << 20):  # to the end of the stream, where gzip compares its checksum
                pass
    except Exception as error:  # of many kinds, depending on where the damage lies
        reason = getattr(error, "strerror", None) or printable(error)
        raise DataError(f"{archive}: expected a whole archive, got {reason}; download it again from {_PAGE}") from error
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{archive}: expected {_FOLDER}/{missing[0]} in it, got none; download it again from {_PAGE}")
    return [(f"{archive} ({name})", found[name]) for name in names]


def _decode(data: bytes, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and labels (n,), both uint8, of one file."""
    if not data or len(data) % _ROW:
        raise DataError(
            f"{where}: expected a whole number of {_ROW:,}-byte rows ({10_000 * _ROW:,} bytes as published), "
            f"got {len(data):,} bytes; download it again from {_PAGE}"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, _ROW)
    labels = rows[:, 0]
    if labels.max() > 9:
        raise DataError(f"{where}: expected labels 0 to 9, got {labels.max()}; download CIFAR-10 from {_PAGE}")
    planes = rows[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
