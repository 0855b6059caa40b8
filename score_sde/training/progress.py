"""What a person watching sees: a bar on a terminal, plain lines elsewhere; and a file of metrics for later."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
        kept = b""
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if json.loads(line)["step"] > step:
                        break
                except (ValueError, KeyError, TypeError, RecursionError):  # a torn line, or a damaged one
                    continue
                kept += line if line.endswith(b"\n") else line + b"\n"
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
