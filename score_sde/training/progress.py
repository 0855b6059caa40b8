"""What a person watching sees: a bar on a terminal, plain lines elsewhere; and files of metrics for later."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from score_sde.extras import extra
from score_sde.files import write_bytes, writing


def clock(seconds: float | int) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(max(int(seconds + 0.5), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Progress of `total` units of work, on standard error; an ETA from the pace since the start of this process."""

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.first, self.began = what, total, done, time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what, disable=None, dynamic_ncols=True)  # None: on a TTY only

    def update(self, done: int, note: str = "") -> None:
        """Report `done` units and a note such as the loss."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.total - done) / max(done - self.first, 1)
        print(f"{self.what} {done}/{self.total}  {note}  elapsed {clock(elapsed)}  ETA {clock(left)}", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class MetricsFile:
    """JSON lines, one object per report.  Opened at a step, it drops lines of later steps, which were lost."""

    def __init__(self, path: Path, step: int = 0):
        kept = b"".join(line for line, values in _lines(path) if values["step"] <= step)
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and kept != path.read_bytes():
                write_bytes(path, kept)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close

    def write(self, **values: Any) -> None:
        """Append one line."""
        with writing(self.path):
            self._file.write((json.dumps(values) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a metrics file whose steps rise, and what they say; torn and damaged ones are left out."""
    last = -1
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            rises = values["step"] > last
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if rises:
            last = values["step"]
            yield line + b"\n", values


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of a metrics file, which a trainer may be writing: step, loss, ...; nan where there was none."""
    rows = [values for _, values in _lines(path)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([np.nan if row.get(name) is None else row[name] for row in rows]) for name in names}


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean of the 2 `half` + 1 values around each of n, of as many as there are at the ends; nan is left out."""
    there = np.isfinite(values)
    sums, counts = (np.concatenate([[0], np.cumsum(v)]) for v in (np.where(there, values, 0.0), there))
    places = np.arange(len(values))
    starts, ends = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    number = counts[ends] - counts[starts]
    return np.where(number > 0, (sums[ends] - sums[starts]) / np.maximum(number, 1), np.nan)


class EventFiles:
    """What TensorBoard reads.  Opened at a step, it declares what earlier files say of later steps void (purge_step).

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, first: int):
        """Write to `directory` what happens from step `first` on."""
        with extra("tensorboard"):
            from tensorboardX import SummaryWriter
        # The suffix: files of one second would have one name, and the second would overwrite the first.
        self._writer = SummaryWriter(
            str(directory), purge_step=first, flush_secs=5, filename_suffix=f".{first:09d}-{os.getpid()}"
        )

    @staticmethod
    def check() -> None:
        """Raise MissingExtra early."""
        with extra("tensorboard"):
            import tensorboardX  # noqa: F401

    def write(self, step: int, **values: float | int | None) -> None:
        """Scalars at a step; None is left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, png: bytes) -> None:
        """A picture at a step."""
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        self._writer.add_image("samples", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
