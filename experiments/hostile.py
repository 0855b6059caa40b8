"""Hostile files, made without any library that would refuse to write them: at most 10 kB on the disk each.

A case writes its files into an empty folder and returns the path to open.  They are opened in another folder, that of
`plant`, where Python finds the module `planted`: code of a file that is executed, and that module where it is imported,
makes the file `canary` there.  `hostile_weights.py` and `hostile_data.py` fill CORPUS, `hostile_files.py` opens
everything in it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """door: how it is opened, one of those of `hostile_files.open_case`; make: writes it and returns what to open."""

    name: str
    door: str
    make: Callable[[Path], Path]


CORPUS: dict[str, Case] = {}
DEEP = 2_000  # brackets in brackets


def plant(folder: Path) -> Path:
    """Fill `folder`, the working directory to be, with the module `planted`; returns the place of the canary."""
    folder.mkdir()
    (folder / "planted.py").write_text("open('canary', 'w').close()\n")
    return folder / "canary"


def add(door: str, name: str, make: Callable[[Path], Any], file: str = "file") -> None:
    """Add a case: `make(folder)` returns the bytes of `file`, or writes what it wants and returns None."""

    def write(folder: Path) -> Path:
        data = make(folder)
        if data is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        return folder / file

    assert f"{door}: {name}" not in CORPUS
    CORPUS[f"{door}: {name}"] = Case(f"{door}: {name}", door, write)


def add_all(door: str, cases: dict[str, bytes], file: str = "file") -> None:
    """Add a case for each name and bytes of `file`."""
    for name, data in cases.items():
        add(door, name, lambda folder, data=data: data, file)


# --- what is no file -------------------------------------------------------------------------------------------------

NOT_FILES = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
    "10 GB of nothing": lambda path: sparse(path, b""),
}


def sparse(path: Path, start: bytes, size: int = 10 * 2**30) -> None:
    """`start`, then zeros that take no room on the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


def add_not_files(door: str, file: str, start: bytes = b"", companions: dict[str, bytes] | None = None) -> None:
    """FIFOs, devices, links in circles, and a sparse file that begins with `start`, in the place of `file`."""
    for kind, write in NOT_FILES.items():

        def make(folder: Path, write=write, kind=kind) -> None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            for name, data in (companions or {}).items():
                (folder / name).write_bytes(data)
            sparse(folder / file, start) if kind.startswith("10 GB") else write(folder / file)

        add(door, f"{kind} as {os.path.basename(file)}", make, file)
