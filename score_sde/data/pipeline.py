"""Batches as a function of their number.

Think of one endless stream: a fresh permutation of the data set for every epoch, one after the other.  Batch n is
positions n B ... (n+1) B - 1 of it, whatever B is, so nothing is dropped at the end of an epoch and nothing has to be
saved: a resumed run asks for batch n and gets it.  All randomness is counter-based (Philox; Salmon et al. 2011): the
key is (seed, epoch) for a permutation and (seed, n) for the flips of a batch.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from score_sde.data.sources import Source

_PERMUTATION, _FLIP = 0, 1  # the top word of the counter keeps two uses of one key apart
_END = 2**62  # "endless" for grain, which wants a length


def batch_indices(n: int, batch_size: int, size: int, seed: int) -> np.ndarray:
    """Indices (batch_size,) of batch number `n` in a data set of `size` examples.

    Raises:
        ValueError: a number is out of range.
    """
    _check(n=(n, 0), batch_size=(batch_size, 1), size=(size, 1), seed=(seed, 0))
    first, end = n * batch_size, (n + 1) * batch_size
    epochs = range(first // size, (end - 1) // size + 1)
    return np.concatenate([_permutation(size, seed, e)[max(first - e * size, 0) : end - e * size] for e in epochs])


def batches(
    source: Source, batch_size: int, seed: int, *, start: int = 0, flip: bool = False, stack: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of `source` from number `start` on, made ahead in the background.

    Args:
        source: any `Source`; its `__getitem__` is called from threads.
        batch_size: examples in a batch; it may exceed the data set.
        seed: batch n depends on (seed, n) alone.
        start: number of the first batch; any value costs the same.
        flip: mirror each image left-right with probability 1/2.
        stack: yield this many consecutive batches at once, for several steps in one dispatch.

    Returns:
        Iterator of {"x": (batch_size, *shape), "label": (batch_size,)}, with a leading axis (stack,) where asked for.
        An exception in `source` is raised by the `next` that would have returned that batch.

    Raises:
        ValueError: a number is out of range, the source is empty, or `flip` is asked of something not an image.
    """
    size = _size(source)
    _check(batch_size=(batch_size, 1), seed=(seed, 0), start=(start, 0), stack=(1 if stack is None else stack, 1))
    if flip and len(source.shape) != 3:
        raise ValueError(f"flip needs images (height, width, channels), got shape {source.shape}. Set flip=False.")

    def make(first: int) -> dict[str, np.ndarray]:
        numbers = range(first, first + (stack or 1))
        batch = dict(source[np.concatenate([batch_indices(n, batch_size, size, seed) for n in numbers])])
        if flip:
            mirrored = np.concatenate([_flips(n, batch_size, seed) for n in numbers])
            x = batch["x"] = np.array(batch["x"])  # a copy: the source may have returned its own memory
            x[mirrored] = x[mirrored, :, ::-1]  # three times faster than np.where
        return batch if stack is None else {k: v.reshape(stack, batch_size, *v.shape[1:]) for k, v in batch.items()}

    import grain  # 0.7 s, which a sampler need not pay

    # grain runs over batch numbers: over examples it spends 100 times longer on bookkeeping than on the gather.
    numbered = grain.MapDataset.range(start, _END, stack or 1).map(make)
    return _closing(iter(numbered.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))))


def in_order(source: Source, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """Every example of `source` once, in order, in full batches.

    Returns:
        Iterator of (batch, indices (batch_size,), valid (batch_size,)): the last batch is filled up with examples from
        the start of the set, for which `valid` is False, so that one compiled program serves every batch.

    Raises:
        ValueError: `batch_size` is less than 1, or the source is empty.
    """
    size = _size(source)
    _check(batch_size=(batch_size, 1))
    positions = (np.arange(first, first + batch_size) for first in range(0, size, batch_size))
    return ((source[p % size], p % size, p < size) for p in positions)


def _closing(iterator) -> Iterator[dict[str, np.ndarray]]:
    """`iterator`, whose threads end with it: at an exception, or when the consumer drops it."""
    try:
        yield from iterator
    finally:
        iterator.close()


@lru_cache(maxsize=4)  # a batch touches one epoch or two, and a background thread may be one ahead
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    permutation = _generator(seed, epoch, _PERMUTATION).permutation(size)
    permutation.setflags(write=False)  # shared by all who ask
    return permutation


def _flips(n: int, batch_size: int, seed: int) -> np.ndarray:
    return _generator(seed, n, _FLIP).random(batch_size) < 0.5


def _generator(seed: int, number: int, use: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=[0, 0, 0, use]))


def _size(source: Source) -> int:
    if not (size := len(source)):
        raise ValueError("source must hold at least one example, got 0. Check how it was read or filtered.")
    return size


def _check(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}. Give a whole number from {least} up.")
