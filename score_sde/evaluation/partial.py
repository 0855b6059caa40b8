"""What an evaluation has done so far, on the disk until its report is: taken up by the same evaluation and no other."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.files import read_arrays, write_arrays

_log = logging.getLogger(__name__)


class Partial:
    """The parts of an evaluation, in a file that says what they are of.

    Args:
        path: the file, or None to keep nothing.
        stamp: what decides on the values, as JSON: settings, step, digests of the weights and of the data.
    """

    def __init__(self, path: Path | None, stamp: dict[str, Any]):
        self.path, self.stamp = path, stamp

    def resume(self) -> list[dict[str, np.ndarray]]:
        """What was done: one part, or none.

        A file that is damaged, or of other weights, data or settings, is told, and set aside under another name.
        """
        if self.path is None or not self.path.exists():
            return []
        try:
            part = read_arrays(self.path)
            stamp = json.loads(str(part.pop("stamp")))
            other = [k for k in {**stamp, **self.stamp} if stamp.get(k) != self.stamp.get(k)]
        except Exception:  # damaged, for which zip files raise a dozen types
            self._set_aside("is damaged")
            return []
        if other:
            self._set_aside(f"is of other {' and '.join(other)}")
            return []
        return [part]

    def keep(self, parts: list[dict[str, np.ndarray]]) -> None:
        """Write what is done, in place of what was."""
        if self.path is not None:
            arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
            write_arrays(self.path, stamp=np.array(json.dumps(self.stamp)), **arrays)

    def _set_aside(self, why: str) -> None:
        target, n = self.path.with_name(f"{self.path.stem}.aside.npz"), 2
        while target.exists():
            target, n = self.path.with_name(f"{self.path.stem}.aside-{n}.npz"), n + 1
        self.path.rename(target)
        _log.warning(
            "the unfinished evaluation %s %s: it is set aside as %s, and begun anew", self.path, why, target.name
        )
