"""Some rows of a data set that stand for all of them.

Data on a disk are often sorted by class, so the first rows are no sample.  Here a row's place in the shuffle is a hash
of its number (the finalizer of SplitMix64, a bijection of 64-bit words: no ties), and the rows drawn are those of the
smallest hashes.  So the draw is the same everywhere and for ever, fewer rows are a part of more, and a set that has
grown keeps most of what was drawn of it.

Source: Steele, Lea & Flood, "Fast splittable pseudorandom number generators" (2014).
"""

import numpy as np

RULE = "rows of the smallest SplitMix64 hashes"
_PIECE = 2**20  # hashes held at once


def drawn_rows(size: int, count: int) -> np.ndarray:
    """`count` of the rows 0..size-1 (count,), in a shuffled order that is always the same: the first of it for fewer.

    Raises:
        ValueError: there are not so many rows.

    >>> drawn_rows(10, 4), drawn_rows(10, 2)
    (array([2, 4, 6, 8]), array([2, 4]))
    """
    if not 0 <= count <= size:
        raise ValueError(f"expected a number of rows in 0..{size}, got {count}. Ask for fewer.")
    kept = np.empty(0, np.int64)
    for first in range(0, size, _PIECE):
        rows = np.concatenate([kept, np.arange(first, min(first + _PIECE, size))])
        places = _hashes(rows)
        if len(rows) > count:
            chosen = np.argpartition(places, count - 1)[:count] if count else np.empty(0, np.int64)
            rows, places = rows[chosen], places[chosen]
        kept = rows[np.argsort(places)]
    return kept


def _hashes(rows: np.ndarray) -> np.ndarray:
    """A word for each row, all different."""
    z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64, as all below
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
