"""Arrays in .npy and .npz files: vectors, images, volumes, whatever a network takes.

    FILE.npy                        every tenth example, from the first on, is a test example
    FILE.npz                        the same; "x", and class numbers in "labels" if it has them
    FOLDER/train.npy, test.npy      given splits (or train.npz, test.npz)

A .npy file is mapped into memory, so it may be larger than that.  Pickled objects are never read.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data.sources import ArraySource, DataError, Source, Subset, check_split, split_rows
from score_sde.reading import RegularFile, printable


def arrays(split: str, path: str | os.PathLike, *, levels: int | None = None) -> Source:
    """Examples of a file, or of a folder with a file for each split, shape (*shape) of an array (N, *shape).

    Args:
        split: 'train' or 'test'.
        path: the file or folder, as the module's docstring says.
        levels: whole numbers must lie in 0..levels-1, which is 256 for uint8 if not given; None for real numbers.

    Raises:
        ValueError: another split is asked for.
        DataError: a file is missing, damaged or pickled, or its arrays contradict each other, `levels` or the other
            split's; one line that names the file.
    """
    check_split(split)
    path = Path(path)
    file, whole = _file(path, split)
    x, labels, levels = _read(file, levels)
    if not whole and (shape := _read(_file(path, "train")[0], levels)[0].shape[1:]) != x.shape[1:]:
        raise DataError(f"{file}: expected examples of shape {shape}, as to train on, got {x.shape[1:]}")
    if whole and len(x) < 2:
        raise DataError(f"{file}: expected at least two examples, to train and to test, got {len(x)}")
    try:
        source = ArraySource(x, labels, levels, None if labels is None else int(np.max(labels, initial=0)) + 1)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    return Subset(source, split_rows(split, len(x))) if whole else source


def array_shape(path: str | os.PathLike, *, levels: int | None = None) -> tuple[tuple[int, ...], int | None]:
    """(shape, levels) of the examples of `arrays`, whose values are not read yet; errors as there."""
    x, _, levels = _read(_file(Path(path), "train")[0], levels)
    return x.shape[1:], levels


def _file(path: Path, split: str) -> tuple[Path, bool]:
    """The file with a split, and whether it holds both."""
    if not path.is_dir():
        return path, True
    names = [f"{split}.npy", f"{split}.npz"]
    found = [path / name for name in names if (path / name).exists()]
    if len(found) != 1:
        got = "both" if found else "neither"
        raise DataError(f"{path}: expected {' or '.join(names)}, got {got}; config.data.dir may also be a single file")
    return found[0], False


def _read(file: Path, levels: int | None) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """x (N, *shape), labels or None, and levels, with headers that fit together."""
    labels = None
    try:
        if file.suffix not in (".npy", ".npz"):
            raise ValueError(f"a name that ends in {file.suffix or 'nothing'}" if file.exists() else "no such file")
        with RegularFile(file) as data:
            if file.suffix == ".npy":
                x = _mapped(data)
            else:
                with zipfile.ZipFile(data) as archive:
                    members = [name.removesuffix(".npy") for name in archive.namelist()]
                    if "x" not in members:
                        raise ValueError(f"members {', '.join(members) or 'none'} without x")
                    labels = _unpacked(archive, "labels.npy", data) if "labels" in members else None
                    x = _unpacked(archive, "x.npy", data)
    except Exception as error:  # of many kinds, depending on where the damage lies
        reason = printable(getattr(error, "strerror", None) or error)
        raise DataError(f"{file}: expected a .npy or .npz file without pickled objects, got {reason}") from error
    if x.ndim < 2 or not x.size:
        raise DataError(f"{file}: expected x of shape (N, *shape) with N >= 1, got {x.shape}; (N, 1) holds numbers")
    if labels is not None and (labels.shape != x.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise DataError(f"{file}: expected {len(x):,} whole numbers as labels, got {labels.dtype} {labels.shape}")
    whole, real = np.issubdtype(x.dtype, np.integer), np.issubdtype(x.dtype, np.floating) and x.itemsize <= 8
    if not (whole or real) or not x.dtype.isnative:
        raise DataError(f"{file}: expected whole or real numbers in this machine's byte order, got {x.dtype.str}")
    levels = 256 if levels is None and x.dtype == np.uint8 else levels
    if whole and levels is None:
        raise DataError(f"{file}: expected config.data.levels for {x.dtype}, the number of values from 0 up, got none")
    if real and levels is not None:
        raise DataError(f"{file}: expected whole numbers for config.data.levels={levels}, got {x.dtype}; leave it out")
    return x, labels, levels


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, bytes of the numbers) of the array that begins here."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"version {version}, of records with names")
    shape, in_columns, dtype = read[version](stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("pickled objects" if dtype.hasobject else f"shape {shape}")
    return shape, in_columns, dtype, math.prod(shape) * dtype.itemsize


def _mapped(file: RegularFile) -> np.ndarray:
    shape, in_columns, dtype, size = _header(file)
    if (there := file.size - file.tell()) < size:
        raise ValueError(f"{there:,} of {size:,} bytes")
    if not size:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if in_columns else "C")


def _unpacked(archive: zipfile.ZipFile, name: str, file: RegularFile) -> np.ndarray:
    """A member, whose header and entry in the archive agree on a size that the file may ask for."""
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # of others any read may take any memory
        raise ValueError("a compression that NumPy does not write")
    file.check_memory(entry.file_size)
    with archive.open(entry) as stream:
        *_, size = _header(stream)
        if (there := entry.file_size - stream.tell()) != size:
            raise ValueError(f"{there:,} of {size:,} bytes in {name}")
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
