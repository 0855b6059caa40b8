"""safetensors files: a length, a JSON header, raw numbers."""

import json
from pathlib import Path

import numpy as np

from score_sde.files import write_bytes
from score_sde.reading import RegularFile, check_limit
from score_sde.weights.errors import WeightsError, damaged
from score_sde.weights.lazy import LazyTensor, tensor_at

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` begins as one: a length, then '{'."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """(tensors, metadata) of a file, of which only the header is read.

    Raises:
        WeightsError: the file is damaged, or has numbers of a kind that weights do not come in.
    """
    try:
        with RegularFile(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > file.size - 8:
                raise EOFError("it is cut short")
            check_limit("SCORE_SDE_MAX_TEXT", length, "bytes of a header")
            header = json.loads(file.read(length))
            first, size = 8 + length, file.size - 8 - length
        metadata = header.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("expected texts as metadata, got others")
        tensors = {name: _tensor(path, first, size, name, entry) for name, entry in header.items()}
    except WeightsError:
        raise
    except Exception as error:  # of a damaged header: many types
        raise damaged(path, error) from error
    if sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) != size:
        raise damaged(path, f"it has {size:,} bytes of numbers, and its header tells of others")
    return tensors, metadata


def _tensor(path: Path, first: int, size: int, name: str, entry: dict) -> LazyTensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise WeightsError(f"{path}: expected real numbers in {name}, got {entry['dtype']}.")
    if not (type(begin) is type(end) is int and 0 <= begin <= end <= size):
        raise ValueError(f"{name} lies outside the file")
    return tensor_at(path, first + begin, end - begin, _DTYPES[entry["dtype"]], entry["shape"])


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write float32 tensors, atomically.

    Raises:
        WorkdirError: the disk does not take them.
    """
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(v, np.float32) for name, v in tensors.items()}, metadata))
