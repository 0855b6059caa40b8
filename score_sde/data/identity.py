"""Which data these are: a digest of what a source holds, by which two of them are told apart.

A path says little: another data set may lie there tomorrow.  So what must not be mixed, the steps of a training or the
parts of an evaluation, keeps the digest of its data and compares it.
"""

import hashlib

import numpy as np

from score_sde.data.sources import ArraySource, Source, Subset

_PIECE = 2**24  # bytes read at a time
_PROBES = 1024  # examples that are read of a source whose reading may be dear


def fingerprint(source: Source) -> str:
    """A digest of length, shape, levels, classes and examples of `source`: 32 hexadecimal digits.

    Arrays, and subsets of them, are read whole, a piece at a time.  Of any other source, whose reading may be dear, up
    to 1,024 examples spread evenly over it are read, twice: one that changes them at random, so that they differ from
    one reading to the next, is known by its length, shape, levels and classes alone.
    """
    size = len(source)
    digest = hashlib.sha256(repr((size, tuple(source.shape), source.levels, source.num_classes)).encode())
    if _is_array(source):
        example = source[np.arange(1)]["x"].nbytes if size else 1
        _read(digest, source, np.arange(size), max(1, _PIECE // max(example, 1)))
    else:
        rows = np.unique(np.linspace(0, size - 1, min(size, _PROBES)).astype(int)) if size else np.arange(0)
        first, second = (_read(digest.copy(), source, rows, 64) for _ in range(2))
        digest = first if first.digest() == second.digest() else digest
    return digest.hexdigest()[:32]


def _is_array(source: Source) -> bool:
    while type(source) is Subset:
        source = source.source
    return type(source) is ArraySource


def _read(digest, source: Source, rows: np.ndarray, piece: int):
    """`digest`, with the examples at `rows` in it, whatever the size of the pieces."""
    parts: dict[str, hashlib._Hash] = {}
    for first in range(0, len(rows), piece):
        for name, values in source[rows[first : first + piece]].items():
            values = np.ascontiguousarray(values)
            part = parts.setdefault(name, hashlib.sha256(f"{name} {values.dtype.str}".encode()))
            part.update(values.reshape(-1).view(np.uint8))
    for name in sorted(parts):
        digest.update(parts[name].digest())
    return digest
