"""Tensors of a file whose shape is known and whose numbers are not read yet.

A header may claim a shape of 2^40 numbers in 400 bytes.  So readers give `LazyTensor`s, shapes are compared with those
of the network, and only then are numbers read: those that fit.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.reading import RegularFile
from score_sde.weights.errors import damaged

MOST_AXES = 32  # fewer than NumPy allows


class LazyTensor:
    """A tensor of a file: `shape` is known, the numbers are read by `numpy.asarray`.

    Raises:
        ValueError: no tensor has that shape.
    """

    __slots__ = ("_read", "shape")

    def __init__(self, shape: Sequence[int], read: Callable[[], np.ndarray]):
        self.shape, self._read = checked_shape(shape), read

    def __setstate__(self, state: Any) -> None:
        raise TypeError("a tensor of a file has no state that another could give it")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self._read()
        assert value.shape == self.shape
        with np.errstate(over="ignore"):  # infinities are told where they matter
            return np.array(value, dtype)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return `shape` as a tuple.

    Raises:
        ValueError: no tensor has that shape.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) > MOST_AXES:
        got = f"{len(shape)} axes" if isinstance(shape, (tuple, list)) else "something else"
        raise ValueError(f"expected a tensor with up to {MOST_AXES} axes, got {got}")
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError("expected whole numbers from 0 up as the shape of a tensor, got others")
    return tuple(shape)


def tensor_at(path: Path, start: int, length: int, dtype: str, shape: Any) -> LazyTensor:
    """The tensor whose numbers are the `length` bytes of a file from `start` on; `dtype` as `numbers_of` takes it.

    Raises:
        ValueError: so many bytes do not make up that shape.
    """
    shape = checked_shape(shape)
    if length != (needed := math.prod(shape) * itemsize(dtype)):
        raise ValueError(f"expected {needed:,} bytes for a tensor {shape}, got {length:,}")
    return LazyTensor(shape, partial(_read, path, start, length, dtype, shape))


def _read(path: Path, start: int, length: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with RegularFile(path) as file:
            file.seek(start)
            return numbers_of(file.read(length), dtype).reshape(shape)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def itemsize(dtype: str) -> int:
    """Count the bytes of a number of `dtype`, as `numbers_of` takes it."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def numbers_of(raw: bytes, dtype: str) -> np.ndarray:
    """The numbers that `raw` holds, one after the other; those of dtype 'bfloat16', which NumPy lacks, as float32."""
    if dtype != "bfloat16":
        return np.frombuffer(raw, dtype)
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)  # its upper half
