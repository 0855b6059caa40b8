"""Files of unknown origin, read within limits.

A file may claim anything of itself: that it holds 2^40 numbers, that it unpacks to terabytes, that it is a file at all.
So only regular files are opened, without waiting (a FIFO or a device is an error), and what a file asks for is compared
with what is there before memory is taken.  Every refusal is an OSError whose `strerror` says in one line what was
expected and what came; who catches it knows the remedy.

A file may take as much memory as `SCORE_SDE_MAX_BYTES`, or 16 times the bytes that it takes on the disk if that is
more: who sends a file of a gigabyte may fill gigabytes, who sends one of kilobytes may not.
"""

import errno
import io
import os
import stat
from typing import Any

LIMITS = {  # names of environment variables that raise them
    "SCORE_SDE_MAX_BYTES": 2**28,  # of memory that a file may ask for, however small it is
    "SCORE_SDE_MAX_TEXT": 2**22,  # of a pickle or of JSON, whose bytes may become objects of 70 bytes each
    "SCORE_SDE_MAX_PIXELS": 3 * 2**23,  # of an image, and of all that are decoded at the same time
}
UNPACKING = 16  # times its size on the disk, which any file may take
_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def limit(name: str) -> int:
    """The limit `name` of LIMITS, which the environment variable of that name sets.

    Raises:
        OSError: the variable holds no whole number.
    """
    value = os.environ.get(name, "")
    if value and not value.isdecimal():
        raise OSError(errno.EINVAL, f"expected a whole number in the environment variable {name}, got {value!r}")
    return int(value) if value else LIMITS[name]


def check_limit(name: str, size: int, what: str, most: int | None = None) -> None:
    """Raise OSError where `size` of `what` exceeds the limit `name`, or `most` where that is more."""
    most = max(limit(name), most or 0)
    if size > most:
        raise OSError(errno.EFBIG, f"expected at most {most:,} {what}, got {size:,} (set {name} if you trust the file)")


class RegularFile(io.BufferedReader):
    """A regular file, open for reading; no read takes more memory than the file has bytes, or may have.

    size: its bytes; allowed: bytes of memory that it may ask for.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self._check(os.stat(path))  # first, since to open a device may do something
        except ValueError as error:  # of a path that no system has, with a zero in it
            raise OSError(errno.EINVAL, f"expected a path, got {error}", self.path) from None
        super().__init__(io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
        try:
            state = os.fstat(self.fileno())
            self._check(state)  # again: there may be another file by now
        except BaseException:
            self.close()
            raise
        self.size, self._on_disk = state.st_size, 512 * state.st_blocks  # of a sparse file the fewer

    def _check(self, state: os.stat_result) -> None:
        if not stat.S_ISREG(state.st_mode):
            kind = _KINDS.get(stat.S_IFMT(state.st_mode), "something else")
            raise OSError(errno.EINVAL, f"expected a regular file, got {kind}", self.path)

    def check_memory(self, size: int) -> None:
        """Raise OSError where the file asks for more than it may."""
        check_limit("SCORE_SDE_MAX_BYTES", size, "bytes", UNPACKING * self._on_disk)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        self.check_memory(size)
        return super().read(size) or b""  # None: where a read would wait


class Unpacked(io.RawIOBase):
    """What `stream` unpacks of `file`; an OSError beyond the memory that the file may take."""

    def __init__(self, stream: Any, file: RegularFile):
        self._stream, self._file, self._count = stream, file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._stream.readinto(buffer)
        self._count += count
        self._file.check_memory(self._count)
        return count


def read_bytes(path: str | os.PathLike) -> bytes:
    """All bytes of a regular file."""
    with RegularFile(path) as file:
        return file.read()


def read_text(path: str | os.PathLike) -> str:
    """A regular file of JSON or the like, in UTF-8; ValueError where it is not."""
    with RegularFile(path) as file:
        check_limit("SCORE_SDE_MAX_TEXT", file.size, "bytes of text")
        return file.read().decode()


def printable(text: object, most: int = 200) -> str:
    """What `text` says in one line of at most `most` characters, of which none moves the cursor of a terminal."""
    line = escaped(" ".join(str(text)[: 4 * most].split()))
    return line if len(line) <= most else line[: most - 3] + "..."


def escaped(text: str) -> str:
    """`text` with escape sequences for what is not printable, but for ends of lines: what a terminal may be given."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
