"""safetensors files: a length, a JSON header, raw numbers.  The `safetensors` package validates them."""

import json
from pathlib import Path

import numpy as np

from score_sde.files import write_bytes
from score_sde.weights.errors import WeightsError
from score_sde.weights.pickles import from_bfloat16, reason

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "U8": "u1",
}
_DTYPES |= {"I8": "i1", "BOOL": "?"}


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as one: a length, then '{'."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, metadata) of a file; bfloat16 becomes float32.

    Raises:
        WeightsError: the file is damaged, or has numbers of a kind that weights do not come in.
    """
    from safetensors import SafetensorError, deserialize

    data = path.read_bytes()
    try:
        found = deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {reason(error)}. Fetch it again.") from error
    tensors = {}
    for name, entry in found:
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(f"{path}: expected real numbers in {name}, got {entry['dtype']}.")
        value = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = from_bfloat16(value) if entry["dtype"] == "BF16" else value
    return tensors, header.get("__metadata__") or {}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write float32 tensors, atomically.

    Raises:
        WorkdirError: the disk does not take them.
    """
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(v, np.float32) for name, v in tensors.items()}, metadata))
