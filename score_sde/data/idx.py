"""MNIST and Fashion-MNIST from their IDX files: four files of one layout, gzipped as published or unpacked.

An IDX file is a big-endian header (two zero bytes, the type of a number, the number of axes, then each axis' length as
four bytes) and the numbers in row-major order (LeCun, http://yann.lecun.com/exdb/mnist).
"""

import contextlib
import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from score_sde.data.sources import ArraySource, DataError, check_split, fetched
from score_sde.reading import RegularFile

_NAMES = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


def mnist(split: str, directory: str | os.PathLike | None = None) -> ArraySource:
    """MNIST, handwritten digits of shape (28, 28, 1), 256 levels, 10 classes: 60,000 to train on, 10,000 to test on.

    Files of the same form with fewer images are read too, for smoke runs.

    Args:
        split: 'train' or 'test'.
        directory: holds `train-images-idx3-ubyte.gz` and its three companions, or the same unpacked, without `.gz`;
            None reads those in the cache, which are downloaded first unless they are there.

    Raises:
        ValueError: another split is asked for.
        DataError: a file is missing, cut short or something else.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits" (1998).
    """
    return _split("mnist", split, directory)


def fashion_mnist(split: str, directory: str | os.PathLike | None = None) -> ArraySource:
    """Fashion-MNIST, ten kinds of garment in the files of MNIST: arguments and errors are those of `mnist`.

    Source: Xiao, Rasul, Vollgraf, arXiv:1708.07747 (2017), MIT licence.
    """
    return _split("fashion_mnist", split, directory)


def _split(name: str, split: str, directory: str | os.PathLike | None) -> ArraySource:
    check_split(split)
    directory = fetched(name, directory)
    remedy = f"get it with `python -m score_sde.data.fetch {name}`"
    images = _read(path := _file(directory, f"{_NAMES[split]}-images-idx3-ubyte"), 3, remedy)
    if images.shape[1:] != (28, 28) or not len(images):
        raise DataError(f"{path}: expected images of 28x28 pixels, got shape {images.shape}; {remedy}")
    labels = _read(path := _file(directory, f"{_NAMES[split]}-labels-idx1-ubyte"), 1, remedy)
    if len(labels) != len(images):
        raise DataError(f"{path}: expected {len(images):,} labels, one for each image, got {len(labels):,}; {remedy}")
    if labels.max() > 9:
        raise DataError(f"{path}: expected labels 0 to 9, got {labels.max()}; {remedy}")
    return ArraySource(images[..., None], labels, levels=256, num_classes=10)


def _file(directory: Path, name: str) -> Path:
    """The file as published, gzipped, unless there is only the unpacked one."""
    packed, unpacked = directory / f"{name}.gz", directory / name
    return unpacked if unpacked.exists() and not packed.exists() else packed


def _read(path: Path, axes: int, remedy: str) -> np.ndarray:
    """The uint8 array of an IDX file with so many axes."""
    header, count = 4 + 4 * axes, 0
    try:
        with RegularFile(path) as file, _unpacked(file) as stream:
            head = stream.read(header)
            if head[:4] == bytes([0, 0, _UINT8, axes]) and len(head) == header:
                shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
                file.check_memory(count := math.prod(shape))
            data = stream.read(count + 1)  # one more, at which gzip compares its checksum
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: expected a readable IDX file, got {reason}; {remedy}") from error
    if len(head) < header or head[:4] != bytes([0, 0, _UINT8, axes]):
        start = head[:4].hex(" ") or "nothing"
        raise DataError(f"{path}: expected an IDX file of bytes with {axes} axes, got {start}; {remedy}")
    if len(data) != count:
        got = f"{header + len(data):,}" if len(data) < count else "more"
        raise DataError(f"{path}: expected {header + count:,} bytes for shape {shape}, got {got}; {remedy}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _unpacked(file: RegularFile):
    return gzip.GzipFile(fileobj=file) if file.path.endswith(".gz") else contextlib.nullcontext(file)
