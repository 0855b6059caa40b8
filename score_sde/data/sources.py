"""What a data set is: a length, the shape of one example, and a gather.

Nothing else in the project asks more of a data set than `Source`, so a memory map, an image folder or a remote store
takes part by writing one `__getitem__` over an array of indices.  Gathering a whole batch at once is what makes the
pipeline fast: one vectorised read costs about as much as the Python call for a single example.
"""

from dataclasses import dataclass
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


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is 'train' or 'test'."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}. Hold validation data out of 'train'.")


def _checked_examples(x: np.ndarray, levels: int | None) -> np.ndarray:
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"x must hold at least one example, (N, *shape), got shape {x.shape}. Check how it was read.")
    if levels is None:
        if not np.issubdtype(x.dtype, np.floating):
            raise ValueError(f"continuous x must be floating-point, got {x.dtype}. Pass levels= for integer data.")
        if not np.isfinite(x).all():
            bad = np.argwhere(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0, 0]
            raise ValueError(f"x must be finite, got nan or inf in example {bad}. Drop or repair such examples.")
        return x
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}. Use 256 for 8-bit images, None for real numbers.")
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"x with levels={levels} must be integers, got {x.dtype}. Round it, or pass levels=None.")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(f"x must lie in 0..{levels - 1}, got {low}..{high}. Raise levels, or shift x to start at 0.")
    return x


def _checked_labels(labels: np.ndarray, examples: int, num_classes: int) -> np.ndarray:
    if labels.shape != (examples,):
        raise ValueError(f"labels must have shape ({examples},), got {labels.shape}. Give one label per example.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}. Number the classes from 0.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}. Check num_classes.")
    return labels.astype(np.int32)
