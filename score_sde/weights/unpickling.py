"""Pickles of which only plain values come out.

A pickle is a program: it names functions of any module, which its reader is to call, and rewrites the attributes of
what they return.  `Unpickler` runs the few instructions that build plain values (None, booleans, numbers, strings,
bytes, tuples, lists, dictionaries) and knows names with harmless stand-ins of its own; the rest it refuses.

It is Python's own unpickler without C, whose memo is a dictionary: in C a single instruction asks for gigabytes.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.reading import check_limit, printable
from score_sde.weights.errors import WeightsError, damaged

_INSTRUCTIONS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
    BINBYTES SHORT_BINBYTES EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
""".split()


class Unpickler(pickle._Unpickler):
    """Reads the plain values of a pickle.

    Args:
        data: the pickle.
        names: what the pickle may name, as {(module, name): stand-in}; it may call those that are callable.
        path: of its file, which errors name.

    A subclass may take other persistent objects (`persistent_load`) and attributes (`build`).
    """

    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any], path: Path):
        super().__init__(io.BytesIO(data))
        self._size, self._names, self._path = len(data), names, path

    def load(self) -> Any:
        """The value.  Nothing of the pickle is executed.

        Raises:
            WeightsError: it is too large, damaged, or asks for anything but plain values and `names`.
        """
        try:
            check_limit("SCORE_SDE_MAX_TEXT", self._size, "bytes of a pickle")
            return super().load()
        except WeightsError:
            raise
        except Exception as error:  # of a damaged pickle: many types
            raise damaged(self._path, error) from error

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            named = printable(f"{module}.{name}")
            raise WeightsError(
                f"{self._path}: expected tensors, dictionaries and numbers, got a call of {named} in its pickle, which "
                "may run any code; nothing was run. Do not use this file."
            )
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """The object that is kept outside the pickle."""
        raise pickle.UnpicklingError("an object outside the pickle")

    def build(self, instance: Any, state: Any) -> None:
        """Give `instance` the attributes in `state`; those of a dictionary are left out, all others refused."""
        if isinstance(instance, NumpyDtype):
            instance.set_state(state)
        elif type(instance) is not dict:
            raise pickle.UnpicklingError("attributes of something that has none")

    def _call(self) -> None:
        args, function = self.stack.pop(), self.stack[-1]
        known = any(function is stand_in for stand_in in self._names.values())
        if not known or not callable(function) or type(args) is not tuple:
            raise pickle.UnpicklingError("a call of something that is no function")
        self.stack[-1] = function(*args)

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def _append(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("values appended to something that is no list")
        self.stack[-1].extend(values)

    def _set(self, items: list) -> None:
        keys, values = items[::2], items[1::2]
        # Of other keys the hash may take for ever: a tuple of two of a tuple of two of ...
        if type(self.stack[-1]) is not dict or not all(type(key) in (str, int, bool) for key in keys):
            raise pickle.UnpicklingError("something else than a dictionary with keys that are names or numbers")
        self.stack[-1].update(zip(keys, values, strict=True))

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS
    }
    dispatch |= {
        pickle.REDUCE[0]: _call,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: lambda self: self._append([self.stack.pop()]),
        pickle.APPENDS[0]: lambda self: self._append(self.pop_mark()),
        pickle.SETITEM[0]: lambda self: self._set([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
    }


class NumpyDtype:
    """Stands for a `numpy.dtype` of plain numbers, which a pickle makes first and gives its byte order afterwards."""

    __slots__ = ("_dtype",)

    def __init__(self, code: str, align: Any = False, copy: Any = True):
        if type(code) is not str or code not in ("b1", *(f"{kind}{n}" for kind in "iuf" for n in (1, 2, 4, 8))):
            raise pickle.UnpicklingError("numbers of a kind that is not known")
        self._dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Take the state of a dtype: (3, byte order, and what records have)."""
        if type(state) is not tuple or state[0] != 3 or state[1] not in ("<", ">", "|") or any(state[2:5]):
            raise pickle.UnpicklingError("numbers of a kind that is not known")
        self._dtype = self._dtype.newbyteorder(state[1])

    def number(self, raw: bytes) -> bool | int | float:
        """The number that `raw` is."""
        if type(raw) is not bytes or len(raw) != self._dtype.itemsize:
            raise pickle.UnpicklingError("a number of the wrong length")
        return np.frombuffer(raw, self._dtype)[0].item()


def _scalar(dtype: NumpyDtype, raw: bytes) -> bool | int | float:
    if type(dtype) is not NumpyDtype:
        raise pickle.UnpicklingError("a number of no known kind")
    return dtype.number(raw)


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 write bytes."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are not written in latin1")
    return text.encode("latin1")


NUMPY_SCALARS = {  # as values: Python's own numbers come out
    ("numpy", "dtype"): NumpyDtype,
    ("numpy.core.multiarray", "scalar"): _scalar,  # until NumPy 1
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
}
