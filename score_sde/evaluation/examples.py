"""The examples that an evaluator looks at: all of a split, or some that stand for it.  No evaluator loads its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from score_sde.data import DataError, Subset, drawn_rows, in_order
from score_sde.data.shuffle import RULE
from score_sde.training.experiment import Task


@dataclass(frozen=True)
class Examples:
    """The examples at `rows` of a split, in that order; `of` is how many the split has."""

    split: str
    source: Subset
    of: int

    @property
    def rows(self) -> np.ndarray:
        """Their numbers in the split, which their random draws come from."""
        return self.source.rows

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """(batch, rows (size,), valid (size,)), as `data.in_order`: only the last batch has some that are not valid."""
        return ((batch, self.rows[places], valid) for batch, places, valid in in_order(self.source, size))

    def settings(self) -> dict[str, Any]:
        """Which they are, for a report."""
        found = {"split": self.split, "examples": len(self), "of": self.of}
        if len(self) < self.of:
            found |= {"drawn": RULE} | ({"rows": self.rows.tolist()} if len(self) <= 64 else {})
        return found


def examples_of(experiment: Task, split: str, count: int | None = None, *, shuffled: bool = False) -> Examples:
    """`count` examples of a split, drawn as `data.drawn_rows` does, or all of them where there are no more.

    They come in the order of the split or, `shuffled`, in that of the draw, where fewer are the first of more.

    Raises:
        DataError: the split is empty.
    """
    source = experiment.load(split)
    size = len(source)
    if size == 0:
        raise DataError(f"the {split} split has no examples. Give it some, or evaluate another split (eval.split).")
    rows = drawn_rows(size, size if count is None else min(count, size))
    return Examples(split, Subset(source, rows if shuffled else np.sort(rows)), size)
