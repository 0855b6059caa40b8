"""What a data set is: a length, the shape of one example, and a gather.

Nothing else in the project asks more of a data set than `Source`, so a memory map, an image folder or a remote store
takes part by writing one `__getitem__` over an array of indices.  Gathering a whole batch at once is what makes the
pipeline fast: one vectorised read costs about as much as the Python call for a single example.

Your own is a class, and a function of (split, directory) that returns it:

>>> class Waves:
...     shape, levels, num_classes = (64,), None, None
...     def __len__(self):
...         return 1000
...     def __getitem__(self, indices):
...         t = np.linspace(0, 2 * np.pi, 64, dtype=np.float32)
...         return {"x": np.sin(t + np.asarray(indices, np.float32)[:, None])}
>>> def waves(split, directory):
...     return Subset(Waves(), split_rows(split, 1000))
>>> waves("test", None)[np.array([0, 1])]["x"].shape
(2, 64)

A config in the folder of `my_data.py`, which holds these, says `c.data.name = "my_data:waves"`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


class DataError(ValueError):
    """A data file is missing or damaged; the message is one line that names the file."""


@runtime_checkable
class Source(Protocol):
    """A finite data set with random access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, (height, width, channels) for images."""

    @property
    def levels(self) -> int | None:
        """Number of grey levels of integer data in 0..levels-1, or None for continuous data."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, labels being 0..num_classes-1, or None where there are no labels."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples at `indices` (n,): "x" (n, *shape), with classes also "label" (n,) int32; called from threads."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Examples held in memory.

    Args:
        x: (N, *shape); integers in 0..levels-1, or finite floating-point numbers where `levels` is None.
        labels: (N,) integers in 0..num_classes-1, or None.
        levels: number of grey levels, or None for continuous data.
        num_classes: number of classes; goes with `labels`.

    Raises:
        ValueError: the arrays contradict each other or the numbers beside them.
    """

    x: np.ndarray
    labels: np.ndarray | None = None
    levels: int | None = None
    num_classes: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "x", _checked_examples(np.asarray(self.x), self.levels))
        if (self.labels is None) != (self.num_classes is None):
            given, absent = ("num_classes", "labels") if self.labels is None else ("labels", "num_classes")
            raise ValueError(f"labels and num_classes go together, got {given} without {absent}. Pass both or neither.")
        if self.labels is not None:
            labels = _checked_labels(np.asarray(self.labels), len(self.x), self.num_classes)
            object.__setattr__(self, "labels", labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        batch = {"x": self.x[indices]}
        return batch if self.labels is None else batch | {"label": self.labels[indices]}


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples of `source` at `rows` (n,), in that order: a split that copies nothing."""

    source: Source
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def levels(self) -> int | None:
        return self.source.levels

    @property
    def num_classes(self) -> int | None:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.source[self.rows[indices]]


def split_rows(split: str, size: int) -> np.ndarray:
    """Indices of a split of `size` examples that have none of their own: every tenth, from the first on, is a test.

    Raises:
        ValueError: another split is asked for.
    """
    check_split(split)
    rows = np.arange(size)
    return rows[(rows % 10 == 0) == (split == "test")]


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is 'train' or 'test'."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}. Hold validation data out of 'train'.")


def fetched(name: str, directory: str | os.PathLike | None) -> Path:
    """`directory`, or where it is None the cached files of a published data set, downloaded if need be."""
    if directory is not None:
        return Path(directory)
    from score_sde.data.fetch import fetch  # here, so that `python -m score_sde.data.fetch` imports it first

    return fetch(name)


def _checked_examples(x: np.ndarray, levels: int | None) -> np.ndarray:
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"x must hold at least one example, (N, *shape), got shape {x.shape}. Check how it was read.")
    if levels is None:
        if not np.issubdtype(x.dtype, np.floating):
            raise ValueError(f"continuous x must be floating-point, got {x.dtype}. Pass levels= for integer data.")
        _check_finite(x)
        return x
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}. Use 256 for 8-bit images, None for real numbers.")
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"x with levels={levels} must be integers, got {x.dtype}. Round it, or pass levels=None.")
    bounds = np.iinfo(x.dtype)
    if bounds.min >= 0 and bounds.max < levels:
        return x  # cannot be out of range: a memory map need not be read
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(f"x must lie in 0..{levels - 1}, got {low}..{high}. Raise levels, or shift x to start at 0.")
    return x


def _check_finite(x: np.ndarray) -> None:
    piece = max(1, 2**24 // x[0].size)  # a memory map may be larger than memory
    for first in range(0, len(x), piece):
        good = np.abs(x[first : first + piece]) <= np.finfo(np.float32).max  # what the device can hold; False for nan
        if not good.all():
            bad = first + np.argwhere(~good.reshape(len(good), -1).all(axis=1))[0, 0]
            raise ValueError(f"x must be finite, got nan or inf in example {bad}. Drop or repair such examples.")


def _checked_labels(labels: np.ndarray, examples: int, num_classes: int) -> np.ndarray:
    if labels.shape != (examples,):
        raise ValueError(f"labels must have shape ({examples},), got {labels.shape}. Give one label per example.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}. Number the classes from 0.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}. Check num_classes.")
    return labels.astype(np.int32)
