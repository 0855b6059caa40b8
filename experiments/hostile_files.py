"""Hostile files of every kind that the package reads, each opened by its public door in a process of its own.

`hostile_weights.py` and `hostile_data.py` write them: pickles that run code, archives that unpack to gigabytes, headers
that claim 2^40 numbers, FIFOs, devices, links in circles.  Each must end in one line of the package's own, within the
bounds.

    python experiments/hostile_files.py --check
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hostile_data  # noqa: F401 - fills CORPUS
import hostile_weights  # noqa: F401
from common import Figures, arguments
from hostile import CORPUS, Case, plant

TIMEOUT = 20  # seconds
MEMORY, ADDRESSES = 2**30, 6 * 2**30  # bytes in memory; bytes of addresses beyond those of the start


def _weights(path: Path) -> int:
    import numpy as np

    from score_sde.main import telling
    from score_sde.weights.__main__ import main
    from score_sde.weights.opening import open_weights

    read = telling(lambda: [np.asarray(tensor) for tensor in open_weights(path).tensors.values()] and 0)
    return read or main(["inspect", str(path)])


def _data(load: Callable[[Path], object]) -> Callable[[Path], int]:
    def door(path: Path) -> int:
        from score_sde.main import telling

        return telling(lambda: load(path) and 0)

    return door


def _data_sets() -> dict[str, Callable[[Path], object]]:
    from score_sde.data import arrays, cifar10, images, mnist, read_image

    return {
        "arrays": lambda path: arrays("train", path, levels=None),
        "mnist": lambda path: mnist("train", path.parent),
        "cifar10": lambda path: cifar10("train", path.parent),
        "images": lambda path: images("train", path, channels=3, size=8),
        "an image": lambda path: read_image(path, channels=3, shape=(8, 8, 3)),
        "a large image": lambda path: read_image(path, channels=3, shape=(8, 8, 3)),
    }


def _run(path: Path) -> int:
    from score_sde.main import main

    return main([f"--workdir={path}", "--mode=sample"])


def open_case(case: Case, path: Path) -> tuple[str, str]:
    """('refused' or what else happened, what was said) of a file that is opened in this process."""
    doors = {"weights": _weights, "run": _run} | {name: _data(load) for name, load in _data_sets().items()}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = doors[case.door](path)
    except BaseException:
        return "traceback", traceback.format_exc()
    said = err.getvalue()
    lines = [line for line in said.splitlines() if not line.startswith("note: ")]
    if code == 0:
        return "opened", out.getvalue()
    if not all(c.isprintable() or c == "\n" for c in said + out.getvalue()):
        return "control characters", said
    if "out of memory" in said or "allocate" in said or "MemoryError" in said:
        return "out of memory", said
    return ("refused" if code == 1 and len(lines) == 1 and lines[0].startswith("error: ") else "lines", said)


def _in_child(case: Case, folder: Path) -> dict:
    """Open a case in a fork, and return its outcome, peak memory and time."""
    (place := folder / "files").mkdir(parents=True)
    said, canary, path = folder / "said", plant(folder / "here"), case.make(place)
    start = time.monotonic()
    if (child := os.fork()) == 0:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES,) * 2)
        os.environ.update(SCORE_SDE_DATA=str(folder / "cache"), SCORE_SDE_STATE=str(folder / "state"))
        os.chdir(canary.parent)
        sys.path.insert(0, str(canary.parent))
        said.write_text(json.dumps(open_case(case, path)))
        os._exit(0)
    done, status, usage = 0, 0, None
    while not done and time.monotonic() < start + TIMEOUT:
        time.sleep(0.005)
        done, status, usage = os.wait4(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
        outcome, text = "hang", ""
    elif status or not said.exists():
        outcome, text = "crash", f"status {status}"
    else:
        outcome, text = json.loads(said.read_text())
    return dict(
        name=case.name, outcome="executed" if canary.exists() else outcome, said=text, seconds=time.monotonic() - start,
        memory=usage.ru_maxrss * 1024,
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--say", action="store_true", help="print what was said of each file")
    chosen = parser.parse_args()
    _data_sets()  # what a case imports is imported once, before the forks
    import score_sde.main
    import score_sde.weights.commands  # noqa: F401

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(case for case in CORPUS.values() if chosen.only in case.name):
            found.append(_in_child(case, Path(scratch) / str(number)))
            if chosen.say or found[-1]["outcome"] != "refused" or found[-1]["memory"] > MEMORY:
                print("{name}: {outcome}, {seconds:.1f} s, {memory:.2g} bytes\n    {said}".format(**found[-1]))
    outcomes, figures = Counter(case["outcome"] for case in found), Figures()
    told = ("refused", "executed", "crash", "traceback", "hang")
    figures.at_least("hostile files", len(found), 100)
    figures.at_most("executed", outcomes["executed"], 0)
    figures.at_most("crashes: signals and tracebacks", outcomes["crash"] + outcomes["traceback"], 0)
    figures.at_most(f"hangs of {TIMEOUT} s", outcomes["hang"], 0)
    figures.at_most("opened, or refused in other words than one line", len(found) - sum(outcomes[k] for k in told), 0)
    figures.at_most("largest memory, GB", max(case["memory"] for case in found) / 1e9, MEMORY / 1e9)
    figures.at_most("longest time, s", max(case["seconds"] for case in found), TIMEOUT)
    figures.end(chosen.check)


if __name__ == "__main__":
    sys.exit(main())
