"""Files that are whole or not there: atomic writes, and a lock that one process holds."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

import numpy as np

from score_sde.reading import RegularFile, read_bytes

_TEMPORARY = ".partial"  # how the name of a file that is being written ends


class WorkdirError(RuntimeError):
    """A working directory cannot be used as asked; the message is one line that says why and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full or read-only disk while `path` is written becomes a WorkdirError of one line."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f"cannot write {path}: {error.strerror or error}. What was there before is untouched: make room or give "
            "write access, then run the same command again."
        ) from error


def check_space(directory: Path, needed: int) -> None:
    """Raise WorkdirError where the disk of `directory`, which exists, has less than `needed` bytes left."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise WorkdirError(
            f"the disk of {directory} has {free / 1e6:,.0f} MB left, and checkpoints take {needed / 1e6:,.0f} MB. "
            "Make room, or use another --workdir."
        )


def read_of_run(path: str | Path) -> bytes:
    """The bytes of a file of a run.

    Raises:
        WorkdirError: there is none, it is no file (a FIFO would hang the reader), or larger than `reading` allows.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise WorkdirError(f"cannot read {path}: {error.strerror}. Restore it, or use another --workdir.") from error


READ = ("config.json", "metrics.jsonl*", ".lock", "checkpoints", "eval")  # what commands read of a run
MANY = 100_000  # files of a run; links in circles have no end


def check_run(workdir: Path) -> None:
    """Raise WorkdirError where a run holds what is no file or folder: a FIFO or a device would hang who opens it."""
    there = os.listdir(workdir) if Path(workdir).is_dir() else []
    left, seen = [Path(workdir) / name for name in there if any(fnmatch(name, read) for read in READ)], 0
    while left:
        path = left.pop()
        seen += 1
        try:
            kind = path.stat().st_mode
            if stat.S_ISDIR(kind):
                left += path.iterdir()
        except FileNotFoundError:
            continue  # or gone by now
        except OSError as error:
            raise WorkdirError(f"cannot read {path}: {error.strerror}. Remove it, or use another workdir.") from error
        if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            raise WorkdirError(f"{path}: expected a file or a folder, got something that is none. Remove it.")
        if seen > MANY:
            raise WorkdirError(f"{workdir} holds more than {MANY:,} files. Look for links in circles, as at {path}.")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` at once: a reader, or a crash, sees the old file or the new one, never a part.

    Raises:
        WorkdirError: the disk does not take it; the old file is as it was.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = _temporary(path)
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _temporary(path: Path) -> tuple[IO[bytes], str]:
    """A new file beside `path`, open and locked for as long as it is open, and its name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else `remove_temporaries` was faster than the lock
            return os.fdopen(handle, "wb"), name
        os.close(handle)


def remove_temporaries(directory: Path) -> None:
    """Delete what writers that were killed have left in `directory` and its folders; living ones hold a lock."""
    for path in Path(directory).rglob(f".*{_TEMPORARY}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def check_writable(directory: Path) -> None:
    """Make `directory`, and raise WorkdirError where no file can be written in it: before hours of work, not after."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise WorkdirError(f"cannot write to {directory}: {error.strerror}. Make room for results there.") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; nan and infinity, which JSON lacks, become null."""
    write_bytes(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def json_digest(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed .npz, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` has written; a damaged file raises one of a dozen types of error."""
    with RegularFile(path) as file, np.load(file, allow_pickle=False) as found:
        file.check_memory(sum(entry.file_size for entry in found.zip.infolist()))
        return dict(found)


def _take_lock(file: Any, directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        raise WorkdirError(
            f"{directory} is in use by a running trainer (process {holder}). Wait for it, or use another --workdir."
        ) from None


def check_free(directory: Path) -> None:
    """Raise WorkdirError if another process holds the lock of `directory`, or it cannot be made; nothing is touched."""
    path = Path(directory) / ".lock"
    there = next(p for p in (Path(directory), *Path(directory).absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "not writable" if there.is_dir() else "not a directory"
        raise WorkdirError(f"cannot write to the workdir {directory}: {there} is {why}. Choose another.")
    if path.is_file() and os.access(path, os.R_OK):
        with open(path, errors="replace") as file:
            _take_lock(file, directory)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory`/.lock; WorkdirError if another process does (the lock ends with its holder, however it ends)."""
    path = Path(directory) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", errors="replace")  # noqa: SIM115 - closed below
    except OSError as error:
        raise WorkdirError(f"cannot write to the workdir {directory}: {error.strerror}. Choose another.") from error
    with file:
        _take_lock(file, directory)
        with writing(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
