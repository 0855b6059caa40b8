"""Files of `torch.save`, read without torch and without running anything they say.

Such a file is a zip archive: `data.pkl`, a pickle in which every tensor is a call of `torch._utils._rebuild_tensor_v2`
on a storage, and the storages beside it as raw bytes.  A pickle names the functions that its reader is to call, any
functions of any module.  This reader knows the few names of a file of weights, and has harmless stand-ins of its own
for them; it refuses the file at the first other name.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.weights.errors import WeightsError

_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip


def from_bfloat16(raw: np.ndarray) -> np.ndarray:
    """bfloat16, as its bits in uint16, as float32: its upper half."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


class _Storage(NamedTuple):
    """Raw numbers in the archive, not read yet."""

    archive: "_Archive"
    key: str
    dtype: str
    numel: int


class LazyTensor:
    """A tensor of the file: its shape is known, its numbers are read by `numpy.asarray`."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        reach = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        good = min((offset, *shape, *strides), default=0) >= 0 and (0 in shape or reach <= storage.numel)
        if not isinstance(storage, _Storage) or not good:
            raise pickle.UnpicklingError(f"a tensor {shape} lies outside its storage")
        self.shape, self._storage, self._offset, self._strides = shape, storage, offset, strides

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        flat = self._storage.archive.numbers(self._storage)[self._offset :]
        strides = [s * flat.itemsize for s in self._strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        view = from_bfloat16(view) if self._storage.dtype == "bfloat16" else view
        return np.array(view, dtype)  # a copy: the storage may be large, and shared


def _rebuild_tensor(storage, offset, shape, strides, *_) -> LazyTensor:
    return LazyTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _Kind(NamedTuple):
    """Stands for torch's storage classes, which pickles name as an argument."""

    dtype: str


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    **{("torch", name): _Kind(dtype) for name, dtype in _DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    def __init__(self, file, archive: "_Archive"):
        super().__init__(file)
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise WeightsError(
                f"{self._archive.path}: expected tensors, dictionaries and numbers, got a call of {module}.{name} "
                "in its pickle, which may run any code; nothing was run. Do not use this file."
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, numel = pid
        if tag != "storage" or not isinstance(kind, _Kind):
            raise pickle.UnpicklingError("a storage of no known kind")
        return _Storage(self._archive, str(key), kind.dtype, int(numel))


class _Archive:
    def __init__(self, path: Path):
        self.path, self._zip = path, zipfile.ZipFile(path)
        inside = [name for name in self._zip.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(inside) != 1:
            raise WeightsError(f"{path}: expected a file of torch.save, got another zip archive. Give a .pth file.")
        self._folder = inside[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in self._zip.infolist()):
            raise WeightsError(f"{path}: expected the plain zip archive of torch.save, got a compressed one.")
        if f"{self._folder}byteorder" in self._zip.namelist() and self._read("byteorder") != b"little":
            raise WeightsError(f"{path}: expected little-endian numbers. Save it again on a usual machine.")

    def _read(self, name: str) -> bytes:
        return self._zip.read(self._folder + name)  # checks the CRC

    def load(self) -> Any:
        with self._zip.open(f"{self._folder}data.pkl") as file:
            return _Reader(file, self).load()

    def numbers(self, storage: _Storage) -> np.ndarray:
        """The numbers of a storage; bfloat16 as its bits.

        Raises:
            WeightsError: they are not there, too few, or damaged.
        """
        try:
            raw = self._read(f"data/{storage.key}")
            numbers = np.frombuffer(raw, "<u2" if storage.dtype == "bfloat16" else storage.dtype)
        except Exception as error:  # of a damaged archive: many types
            raise WeightsError(f"{self.path} is damaged: {reason(error)}. Fetch it again.") from error
        if numbers.size < storage.numel:
            raise WeightsError(
                f"{self.path} is damaged: data/{storage.key} has {numbers.size} of {storage.numel} numbers. Fetch it "
                "again."
            )
        return numbers


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).strip("'\".").split())[:200] or type(error).__name__


def read_torch(path: Path) -> Any:
    """What `torch.save` was given, with a `LazyTensor` for each tensor.  Nothing of the file is executed.

    Raises:
        WeightsError: the file is damaged, or its pickle names anything but tensors, dictionaries and numbers.
    """
    try:
        return _Archive(path).load()
    except WeightsError:
        raise
    except Exception as error:  # of a damaged pickle: many types
        raise WeightsError(f"{path} is damaged: {reason(error)}. Fetch it again.") from error
