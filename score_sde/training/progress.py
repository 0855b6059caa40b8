"""What a person watching sees: a bar on a terminal, plain lines elsewhere; and files of metrics for later."""

import io
import json
import os
import sys
import time
import zlib
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from score_sde.extras import extra
from score_sde.files import WorkdirError, write_bytes, writing
from score_sde.reading import escaped


def clock(seconds: float | int) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(max(int(seconds + 0.5), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def tell(text: str) -> None:
    """Tell the user on standard error, which is not for results; where its reader has gone, nobody from then on."""
    try:
        print(escaped(text), file=sys.stderr, flush=True)
    except OSError:
        nobody = os.open(os.devnull, os.O_WRONLY)  # for libraries too, and for what lies in the buffer
        os.dup2(nobody, 2)
        os.close(nobody)


class Progress:
    """Progress of `total` units of work, on standard error; an ETA from the pace since the start of this process."""

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.first, self.began = what, total, done, time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what, disable=None, dynamic_ncols=True)  # None: on a TTY only

    def update(self, done: int, note: str = "") -> None:
        """Report `done` units and a note such as the loss."""
        if not self._bar.disable:
            with suppress(OSError):  # the terminal may have gone
                self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(done - self._bar.n)
            return
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.total - done) / max(done - self.first, 1)
        note = f"  {note}" if note else ""
        tell(f"{self.what} {done}/{self.total}{note}  elapsed {clock(elapsed)}  ETA {clock(left)}")

    def close(self) -> None:
        """Leave the bar as it is."""
        with suppress(OSError):
            self._bar.close()


class MetricsFile:
    """JSON lines, one object per report, each with a checksum.

    Opened at a step, it drops lines of later steps, which will come again.  Damaged lines are told, and kept in a file
    beside it; those around them stay.
    """

    def __init__(self, path: Path, step: int = 0, reports: int | None = None):
        """Open at `step`, up to which there were so many reports; None where that is not known."""
        self.path = path
        good, damaged = _lines(path)
        earlier = [line for line, values in good if values["step"] <= step]
        kept = b"".join(earlier)
        if reports is not None and len(earlier) < reports:
            tell(f"note: {path} has {len(earlier)} of the {reports} reports up to step {step}; the others are lost.")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if damaged:
                aside = path.with_name(path.name + ".damaged")
                write_bytes(aside, (aside.read_bytes() if aside.exists() else b"") + b"".join(damaged.values()))
                tell(f"note: {path}: {_numbers(damaged)} damaged and left out; kept in {aside.name}.")
            if path.exists() and kept != path.read_bytes():
                write_bytes(path, kept)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close

    def write(self, **values: Any) -> None:
        """Append one line.

        Raises:
            WorkdirError: the file has gone, or the disk does not take the line.
        """
        if not (self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))):
            raise WorkdirError(f"{self.path} was deleted or moved. Put it back, then run the same command again.")
        with writing(self.path):
            self._file.write((json.dumps({**values, CHECKSUM: _checksum(values)}) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


CHECKSUM = "crc32"  # the last value of a line: that of the line without it


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values).encode())


def _numbers(damaged: dict[int, bytes]) -> str:
    shown = ", ".join(map(str, list(damaged)[:5])) + (" ..." if len(damaged) > 5 else "")
    return f"line {shown} is" if len(damaged) == 1 else f"lines {shown} are"


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[int, bytes]]:
    """The good lines of a metrics file and what they say, and the damaged ones by their number, from 1.

    Good are those that hold to their checksums (lines from before there were any come first) and, of these, the most
    whose steps rise.  A last line without its end is that of a writer who was stopped, or is at work: no damage.
    """
    read: list[tuple[int, bytes, dict[str, Any]]] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    torn, summed = lines.pop(), False
    for number, line in enumerate([*lines, torn] if torn else lines, 1):
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            values = json.loads(line)
            if type(values["step"]) is not int or values["step"] < 0:
                continue
            found = values.pop(CHECKSUM, None)
            if (summed or found is not None) and found != _checksum(values):
                continue
            summed = found is not None
            read.append((number, line + b"\n", values))
    rising = _longest_rising([values["step"] for *_, values in read])
    good = {read[i][0]: read[i][1:] for i in rising}
    damaged = {n: line + b"\n" for n, line in enumerate(lines, 1) if n not in good and line.strip()}
    return list(good.values()), damaged


def _longest_rising(numbers: list[int]) -> list[int]:
    """Places of the longest strictly rising subsequence."""
    tails, places, before = [], [], []  # of each length: its smallest last number, where that is; links back
    for i, number in enumerate(numbers):
        length = bisect_left(tails, number)
        tails[length : length + 1], places[length : length + 1] = [number], [i]
        before.append(places[length - 1] if length else -1)
    found, i = [], places[-1] if places else -1
    while i >= 0:
        found.append(i)
        i = before[i]
    return found[::-1]


def last_step(path: Path) -> int:
    """The last step of a metrics file; 0 where it has none."""
    good, _ = _lines(path)
    return good[-1][1]["step"] if good else 0


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of a metrics file, which a trainer may be writing: step, loss, ...; nan where there was none."""
    rows = [values for _, values in _lines(path)[0]]
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
