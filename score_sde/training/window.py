"""The steps since the last report: their means, and whether the run is still a good one.

The sums are saved with every checkpoint, and are sums of one number after the other in float64: a resumed run reports
the same means, to the bit, as one that was never interrupted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

EXPLODED = 10.0  # a mean loss of so many times the lowest one so far


@dataclass
class Window:
    """Sums over the steps since the last report.

    finite: how many of them had a finite loss and gradient, whose sums loss and grad_norm are.
    lowest, last: the smallest and the newest mean loss that was reported.
    changed: settings that hold since a step of this window, to be reported with it.
    reports: how many windows came before; None in a run from before this was counted.
    """

    loss: float = 0.0
    grad_norm: float = 0.0
    finite: int = 0
    lowest: float | None = None
    last: float | None = None
    changed: dict[str, float] = field(default_factory=dict)
    reports: int | None = 0

    def add(self, loss: np.ndarray, grad_norm: np.ndarray) -> None:
        """Add steps, in their order."""
        for value, norm in zip(loss.tolist(), grad_norm.tolist(), strict=True):
            if np.isfinite(value) and np.isfinite(norm):
                self.loss, self.grad_norm, self.finite = self.loss + value, self.grad_norm + norm, self.finite + 1

    def means(self) -> tuple[float | None, float | None]:
        """Mean loss and gradient norm; None where no step was finite."""
        return (self.loss / self.finite, self.grad_norm / self.finite) if self.finite else (None, None)

    def next(self) -> "Window":
        """The window after this one, which has been reported."""
        mean, _ = self.means()
        lowest = min((v for v in (self.lowest, mean) if v is not None), default=None)
        return Window(lowest=lowest, last=mean, reports=None if self.reports is None else self.reports + 1)

    def exploded(self) -> bool:
        """Whether the newest mean loss is more than ten times the lowest one."""
        mean, _ = self.means()
        mean = self.last if mean is None else mean
        return mean is not None and self.lowest is not None and mean > EXPLODED * self.lowest

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; `Window(**values)` is this window again."""
        return asdict(self)


class Pending:
    """What steps have measured, still on the device: to fetch it at once would be to wait for each step.

    bad_steps: how many steps in a row were bad, up to the last one that was fetched.
    """

    def __init__(self, bad_steps: int = 0):
        self._measured: list[Any] = []
        self.bad_steps = bad_steps

    def __len__(self) -> int:
        return len(self._measured)

    def append(self, measured: Any) -> None:
        """Add the `StepMetrics` of a dispatch, (k,) each."""
        self._measured.append(measured)

    def fetch(self, window: Window, leave: int = 0) -> None:
        """Move all dispatches but the last `leave` into `window`."""
        ready = len(self._measured) - leave
        moved: Sequence[Any] = jax.device_get(self._measured[:ready])
        del self._measured[:ready]
        for measured in moved:
            window.add(measured.loss, measured.grad_norm)
            self.bad_steps = int(measured.bad_steps[-1])
