"""Files of `torch.save`, read without torch and without running anything they say.

Such a file is a zip archive: `data.pkl`, a pickle in which every tensor is a call of `torch._utils._rebuild_tensor_v2`
on a storage, and the storages beside it as raw bytes.  The few names of a file of weights have stand-ins here; what the
optimizer of Score-SDE adds to them is its learning rate, a NumPy scalar.
"""

import math
import pickle
import weakref
import zipfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.reading import RegularFile
from score_sde.weights.errors import WeightsError, damaged
from score_sde.weights.lazy import LazyTensor, checked_shape, itemsize, numbers_of
from score_sde.weights.unpickling import NUMPY_SCALARS, Unpickler

_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip


class _Kind(NamedTuple):
    """Stands for torch's storage classes, which pickles name as an argument."""

    dtype: str


class _Storage(NamedTuple):
    """Raw numbers in the archive, not read yet."""

    archive: "_Archive"
    key: str
    dtype: str
    numel: int


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
    shape, strides, (offset,) = checked_shape(shape), checked_shape(strides), checked_shape([offset])
    reach = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # A tensor of more numbers than its storage, by strides of 0, would take any amount of memory.
    inside = 0 in shape or type(storage) is _Storage and max(reach, math.prod(shape)) <= storage.numel
    if type(storage) is not _Storage or not inside:
        raise pickle.UnpicklingError(f"a tensor {shape} lies outside its storage")
    return LazyTensor(shape, partial(_numbers, storage, offset, shape, strides))


def _numbers(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, np.float32)
    flat = storage.archive.numbers(storage)[offset:]
    view = np.lib.stride_tricks.as_strided(flat, shape, [s * flat.itemsize for s in strides], writeable=False)
    return view.copy()  # the storage may be large, and shared


def _no_items() -> dict:
    """Stands for OrderedDict, whose items follow; those given in the call could be hashed for ever."""
    return {}


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _no_items,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): checked_shape,
    **{("torch", name): _Kind(dtype) for name, dtype in _DTYPES.items()},
    **NUMPY_SCALARS,
}


class _Reader(Unpickler):
    def __init__(self, data: bytes, archive: "_Archive"):
        super().__init__(data, _KNOWN, archive.path)
        self._archive = archive

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, numel = pid
        if tag != "storage" or type(kind) is not _Kind or type(key) is not str or type(numel) is not int:
            raise pickle.UnpicklingError("a storage of no known kind")
        return _Storage(self._archive, key, kind.dtype, numel)


class _Archive:
    def __init__(self, file: RegularFile):
        self.path, self._file = Path(file.path), file
        weakref.finalize(self, file.close)  # no __del__: in a circle, the file's own may come before it, and complain
        self._zip = zipfile.ZipFile(file)
        inside = [name for name in self._zip.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(inside) != 1:
            raise WeightsError(
                f"{self.path}: expected a file of torch.save, got another zip archive. Give a .pth file."
            )
        self._folder = inside[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in self._zip.infolist()):
            raise WeightsError(f"{self.path}: expected the plain zip archive of torch.save, got a compressed one.")
        if f"{self._folder}byteorder" in self._zip.namelist() and self._read("byteorder") != b"little":
            raise WeightsError(f"{self.path}: expected little-endian numbers. Save it again on a usual machine.")

    def _size(self, name: str) -> int:
        return self._zip.getinfo(self._folder + name).file_size

    def _read(self, name: str) -> bytes:
        self._file.check_memory(self._size(name))
        return self._zip.read(self._folder + name)  # checks the CRC

    def load(self) -> Any:
        return _Reader(self._read("data.pkl"), self).load()

    def numbers(self, storage: _Storage) -> np.ndarray:
        """The numbers of a storage.

        Raises:
            WeightsError: they are not there, too few, or damaged.
        """
        name = f"data/{storage.key}"
        try:
            there = self._size(name) // itemsize(storage.dtype)
            if there < storage.numel:
                raise ValueError(f"{name} has {there} of {storage.numel} numbers")
            return numbers_of(self._read(name), storage.dtype)
        except Exception as error:  # of a damaged archive: many types
            raise damaged(self.path, error) from error


def read_torch(path: Path) -> Any:
    """What `torch.save` was given, with a `LazyTensor` for each tensor.  Nothing of the file is executed.

    Raises:
        WeightsError: the file is damaged, or its pickle names anything but tensors, dictionaries and numbers.
    """
    with ExitStack() as on_error:
        try:
            value = _Archive(on_error.enter_context(RegularFile(path))).load()
        except WeightsError:
            raise
        except Exception as error:  # of a damaged archive: many types
            raise damaged(path, error) from error
        on_error.pop_all()  # the tensors are still to be read
    return value
