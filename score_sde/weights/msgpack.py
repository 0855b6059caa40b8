"""Checkpoints of Flax: msgpack, in which an array is an extension that holds (shape, dtype, bytes).

Only what is beside the arrays is read, which leaves the optimizer's two moments of every parameter on the disk.
"""

import struct
from pathlib import Path
from typing import Any

from score_sde.reading import RegularFile, check_limit, limit
from score_sde.weights.errors import damaged
from score_sde.weights.lazy import LazyTensor, tensor_at

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA + i: code for i, code in enumerate("fdBHIQbhiq")}
_DTYPES = {f"{kind}{8 * n}": f"<{kind[0]}{n}" for kind in ("float", "int", "uint") for n in (1, 2, 4, 8)}
_DTYPES |= {"bool": "?", "bfloat16": "bfloat16"}
_ARRAY, _SCALAR = 1, 3  # the extensions of Flax with real numbers
_DEEPEST = 100


def is_map(head: bytes) -> bool:
    """Whether a file that begins with `head` begins as a map of two entries or more."""
    return bool(head) and (0x82 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))


def read_msgpack(path: Path) -> Any:
    """What was saved, with a `LazyTensor` for each array and NumPy scalar, and None for other extensions and bytes.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with RegularFile(path) as file:
            value = _Reader(file, path).value()
            if file.tell() != file.size:
                raise ValueError("there is more behind its end")
            return value
    except Exception as error:  # of damaged bytes: many types
        raise damaged(path, error) from error


class _Reader:
    def __init__(self, file: RegularFile, path: Path):
        self._file, self._path, self._left = file, path, limit("SCORE_SDE_MAX_TEXT")

    def value(self, depth: int = 0) -> Any:
        kind = self._take(1)[0]
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if kind < 0x80:
            return kind
        if kind < 0x90:
            return self._map(kind - 0x80, depth)
        if kind < 0xA0:
            return self._list(kind - 0x90, depth)
        if kind < 0xC0:
            return self._take(kind - 0xA0).decode()
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if 0xC4 <= kind <= 0xC6:
            return self._skip(self._file.tell() + self._number("BHI"[kind - 0xC4]))
        if 0xC7 <= kind <= 0xC9:
            return self._extension(self._number("BHI"[kind - 0xC7]))
        if 0xD4 <= kind <= 0xD8:
            return self._extension(1 << kind - 0xD4)
        if 0xD9 <= kind <= 0xDB:
            return self._take(self._number("BHI"[kind - 0xD9])).decode()
        if 0xDC <= kind <= 0xDD:
            return self._list(self._number("HI"[kind - 0xDC]), depth)
        if 0xDE <= kind <= 0xDF:
            return self._map(self._number("HI"[kind - 0xDE]), depth)
        raise ValueError(f"no value begins with {kind:#x}")

    def _take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            check_limit("SCORE_SDE_MAX_TEXT", limit("SCORE_SDE_MAX_TEXT") - self._left, "bytes beside the arrays")
        if len(data := self._file.read(count)) < count:
            raise EOFError("it is cut short")
        return data

    def _number(self, code: str) -> int | float:
        return struct.unpack(f">{code}", self._take(struct.calcsize(code)))[0]

    def _list(self, count: int, depth: int) -> list:
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        found = {}
        for _ in range(count):
            if not isinstance(key := self.value(_DEEPEST), str):
                raise ValueError("expected names as keys, got others")
            found[key] = self.value(depth + 1)
        return found

    def _skip(self, end: int) -> None:
        if end > self._file.size:
            raise EOFError("it is cut short")
        self._file.seek(end)

    def _extension(self, length: int) -> LazyTensor | None:
        kind, start = self._take(1)[0], self._file.tell()
        found = self._array() if kind in (_ARRAY, _SCALAR) else None
        if found is not None and self._file.tell() != start + length:
            raise ValueError("an array is longer or shorter than it says")
        self._skip(start + length)
        return found

    def _array(self) -> LazyTensor:
        if self._take(1)[0] != 0x93:
            raise ValueError("expected shape, dtype and bytes of an array, got others")
        shape, name, kind = self.value(_DEEPEST - 1), self.value(_DEEPEST), self._take(1)[0]
        if name not in _DTYPES or not 0xC4 <= kind <= 0xC6:
            raise ValueError("expected real numbers in an array, got others")
        length = self._number("BHI"[kind - 0xC4])
        start = self._file.tell()
        self._skip(start + length)
        return tensor_at(self._path, start, length, _DTYPES[name], shape)
