"""Network pickles of NVlabs' edm, read without torch and without running anything they say.

Such a file is one pickle: objects of `torch_utils.persistence`, each of which embeds the source of its class, and
tensors whose storages are files of the old `torch.save` inside it.  Here an object is its class's name and its
attributes, and the source is a text that nobody looks at.
"""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.reading import RegularFile, check_limit
from score_sde.weights.errors import WeightsError, damaged
from score_sde.weights.lazy import LazyTensor, itemsize, numbers_of
from score_sde.weights.pickles import _KNOWN, _Kind, _no_items, _Storage
from score_sde.weights.unpickling import Unpickler

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two values of a file of the old `torch.save`
FRAME = 2**17  # Python writes frames of fewer bytes; what is longer is a single string
MOST_TENSORS, DEEPEST = 10_000, 6


class Persistent(NamedTuple):
    """An object of a persistent class: its class's name, and its attributes."""

    name: str
    state: dict


class Module:
    """A module of torch itself: its attributes."""

    __slots__ = ("state",)

    def __init__(self):
        self.state: dict = {}


class _Stream:
    """A file of which little may be read in small pieces, that become objects, and any amount in strings."""

    def __init__(self, file: Any):
        self._file, self._text = file, 0

    def _count(self, size: int) -> None:
        self._text += size
        check_limit("SCORE_SDE_MAX_TEXT", self._text, "bytes of a pickle beside its tensors")

    def read(self, size: int) -> bytes:
        if size <= FRAME:
            self._count(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(FRAME)
        self._count(len(line))
        return line


class _Reader(Unpickler):
    """The plain values, `Persistent` objects and tensors of the pickle where `file` stands; sets become lists."""

    def __init__(self, file: Any, path: Path):
        names = _KNOWN | {
            ("torch.storage", "_load_from_bytes"): lambda raw: _storage(raw, path),
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
            ("torch.nn.modules.container", "ModuleDict"): Module,
            ("torch.nn.modules.container", "ModuleList"): Module,
            ("dnnlib.util", "EasyDict"): _no_items,
            ("builtins", "set"): list,
        }
        super().__init__(b"", names, path)
        pickle._Unpickler.__init__(self, _Stream(file))  # from where the file stands, not from all its bytes

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        """What a pickle of a storage says of it: its kind of numbers, key and size."""
        tag, kind, key, _, numel, view = pid
        whole = type(numel) is int and numel >= 0 and view is None
        if tag != "storage" or type(kind) is not _Kind or type(key) is not str or not whole:
            raise pickle.UnpicklingError("a storage of no known kind")
        return kind.dtype, key, numel

    def build(self, instance: Any, state: Any) -> None:
        if type(instance) is not Module:
            super().build(instance, state)
        elif type(state) is not dict:
            raise pickle.UnpicklingError("attributes that are no dictionary")
        else:
            instance.state = state

    def _frame(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > FRAME:
            raise pickle.UnpicklingError(f"a frame of {size} bytes")
        self._unframer.load_frame(size)

    dispatch = Unpickler.dispatch | {
        pickle.EMPTY_SET[0]: Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.ADDITEMS[0]: Unpickler.dispatch[pickle.APPENDS[0]],
        pickle.NEWOBJ[0]: Unpickler.dispatch[pickle.REDUCE[0]],
        pickle.FRAME[0]: _frame,
    }


def _persistent(meta: Any) -> Persistent:
    name, state = (meta.get("class_name"), meta.get("state")) if type(meta) is dict else (None, None)
    if type(name) is not str or type(state) is not dict:
        raise pickle.UnpicklingError("a persistent object without class_name and state")
    return Persistent(name, state)


class _Raw(NamedTuple):
    """Stands for the archive of a storage: its bytes."""

    raw: memoryview

    def numbers(self, storage: _Storage) -> np.ndarray:
        return numbers_of(bytes(self.raw), storage.dtype)


def _storage(raw: Any, path: Path) -> _Storage:
    """The one storage of a file of the old `torch.save`: five pickles (magic number, protocol, system, the storage, the
    keys), then, for each key, how many numbers, and the numbers."""
    if type(raw) is not bytes:
        raise pickle.UnpicklingError("a storage that is not bytes")
    file = io.BytesIO(raw)
    magic, protocol, system, found, keys = (_Reader(file, path).load() for _ in range(5))
    if (magic, protocol) != (MAGIC, PROTOCOL) or type(system) is not dict or system.get("little_endian") is not True:
        raise pickle.UnpicklingError("a storage that is no little-endian file of torch.save")
    if type(found) is not tuple or keys != [found[1]]:
        raise pickle.UnpicklingError("a storage of another kind")
    dtype, key, numel = found
    there, start = int.from_bytes(file.read(8), "little"), file.tell()
    end = start + numel * itemsize(dtype)
    if there != numel or end != len(raw):
        raise pickle.UnpicklingError(f"a storage of {numel} numbers in {len(raw) - start} bytes")
    return _Storage(_Raw(memoryview(raw)[start:end]), key, dtype, numel)  # type: ignore[arg-type]


def read_edm(path: Path) -> Any:
    """The value of a bare pickle, with `Persistent` for the objects of NVlabs' persistent classes and a `LazyTensor`
    for each tensor.  Nothing of the file is executed.

    Raises:
        WeightsError: the file is damaged, or its pickle names anything else.
    """
    try:
        with RegularFile(path) as file:
            return _Reader(file, path).load()
    except WeightsError:
        raise
    except Exception as error:  # of a damaged pickle: many types
        raise damaged(path, error) from error


def tensors_of(
    module: Persistent | Module, prefix: str = "", depth: int = 0, seen: list[str] | None = None
) -> Iterator[tuple[str, LazyTensor]]:
    """(name, tensor) as in torch's state dicts, in the order in which the modules were registered.

    Raises:
        ValueError: the modules are no tree of the size of a network.
    """
    seen = [] if seen is None else seen  # one module may be in a pickle a hundred times, in modules that are, too
    seen.append(prefix)
    if len(seen) > MOST_TENSORS:
        raise ValueError(f"expected at most {MOST_TENSORS} modules")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _items(module, kind):
            if isinstance(tensor, LazyTensor):
                yield f"{prefix}{name}", tensor
    if depth == DEEPEST:
        raise ValueError(f"expected modules in at most {DEEPEST} layers")
    for name, child in _items(module, "_modules"):
        if isinstance(child, Persistent | Module):
            yield from tensors_of(child, f"{prefix}{name}.", depth + 1, seen)


def _items(module: Persistent | Module, kind: str) -> list[tuple[str, Any]]:
    found = module.state.get(kind, {})
    if type(found) is not dict or len(found) > MOST_TENSORS:
        raise ValueError(f"expected a dictionary as {kind} of a module")
    return [(str(name), value) for name, value in found.items()]
