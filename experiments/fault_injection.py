"""Kills and damages at random: what a run of `--mode=train` and `--mode=eval` ends with.

A small run (4x4 images in a folder, an MLP, 40 steps, its evaluation) is disturbed in two ways:

- kills: SIGKILL after a random time (start-up, compilation, saves, snapshots, evaluation), once or twice, then the same
  command again;
- damages: of a run that was killed half-way, or of a finished one, one file or folder of any kind (config, metrics,
  every part of a checkpoint, samples, plots, reports, partial reports, the cache of decoded images, the images) is
  changed, cut, emptied, deleted, exchanged or renamed, then the run is continued or evaluated again.

Each must end with the state, metrics (times excepted), grids and reports of the undisturbed run, bit by bit; or with
one line that says what is wrong, after which the old file is put back and the command goes on to the same end.  Metrics
may lack lines that the command has said to be damaged or lost.  Counted is what does not:

    wrong       another state, metrics, grids or reports, and no word
    lost saves  a finished save that the next command does not go on from
    lost grids  a grid of samples that is missing at the end
    mixed       results of other data than the run began with
    tracebacks, hangs (no end after 120 s)

10 kills and 50 damages; with --full 200 and 500.  --seed makes others of them.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import Figures, arguments
from PIL import Image

CONFIG = """
from score_sde.config import base_config


def get_config():
    c = base_config()
    c.data.name, c.data.dir, c.data.channels = "images", "images", 1
    c.model.name, c.model.features, c.model.embedding_dim = "mlp", (8, 8), 8
    c.training.batch_size, c.training.steps, c.training.log_every = 8, 40, 8
    c.training.checkpoint_every, c.training.snapshot_every, c.training.warmup = 10, 20, 5
    c.training.learning_rate, c.training.ema_rate, c.training.final_eval = 3e-3, 0.9, True
    c.eval.round_trip, c.eval.bound_draws = 0, 8
    c.sampling.steps, c.sampling.num_samples, c.sampling.batch_size = 4, 8, 8
    c.eval.divergence, c.eval.batch_size, c.eval.rtol, c.eval.atol = "hutchinson", 4, 1e-2, 1e-2
    return c
"""
FAULTS = ("wrong", "lost saves", "lost grids", "mixed", "tracebacks", "hangs")
PATIENCE = 120.0  # seconds
TRAIN = ["--config=../config.py", "--workdir=run", "--mode=train"]
EVAL = ["--workdir=run", "--mode=eval"]


# --- commands ---------------------------------------------------------------------------------------------------------


def child(argv: list[str], folder: str) -> None:
    """A command in `folder`, in a process that has imported all there is to import."""
    for number in (1, 2):
        os.dup2(os.open(os.path.join(folder, f"out{number}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ["SCORE_SDE_DATA"] = os.path.join(folder, "cache")
    sys.argv = ["score-sde", *argv]
    from score_sde.main import run

    run(argv)


@dataclass
class Ended:
    """How a command ended: exit code (None: it did not) and what it told."""

    code: int | None
    out: str
    err: str


class Lane:
    """A folder in which one trial after the other takes place: absolute paths are part of the cache's keys."""

    def __init__(self, root: Path, number: int, context):
        self.context, self.folder = context, root / f"lane{number}"
        self.run = self.folder / "run"
        self.pristine: dict[str, Path] = {}
        self.expected: dict[str, dict] = {}  # of a mode: what the undisturbed run has come to
        self.duration = 0.0  # of the undisturbed training, seconds

    def start(self, argv: list[str]):
        process = self.context.Process(target=child, args=(argv, str(self.folder)))
        process.start()
        return process

    def finish(self, process) -> Ended:
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return Ended(code, *((self.folder / f"out{n}").read_text(errors="replace") for n in (1, 2)))

    def command(self, argv: list[str]) -> Ended:
        return self.finish(self.start(argv))

    def keep(self, name: str) -> None:
        """Remember the folder as it is."""
        self.pristine[name] = self.folder.with_name(f"{self.folder.name}-{name}")
        shutil.copytree(self.folder, self.pristine[name])

    def reset(self, name: str) -> None:
        """Back to what was remembered, times of files included."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine[name], self.folder)

    def saved(self) -> list[int]:
        return sorted(int(p.name) for p in (self.run / "checkpoints").glob("*") if p.name.isdecimal())


# --- results ----------------------------------------------------------------------------------------------------------


def timeless(value):
    """JSON without what differs between two runs of the same: times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not re.search("second|time|date|created|crc32|^made$", k)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def results(lane: Lane, ended: Ended) -> dict[str, object]:
    """All that a run has come to, by name."""
    printed = [line for line in ended.out.splitlines() if "bits/dim" in line]
    found: dict[str, object] = {"printed": [re.sub(", [0-9.a-z]+ examples/s", "", line) for line in printed]}
    with contextlib.suppress(OSError, ValueError):
        notes = json.loads((lane.run / "checkpoints" / "40" / "meta" / "metadata").read_bytes())
        found["state"] = notes["fingerprint"]
    lines = (lane.run / "metrics.jsonl").read_text().splitlines() if (lane.run / "metrics.jsonl").is_file() else []
    try:
        found["metrics"] = [timeless(json.loads(line)) for line in lines]
    except ValueError:
        found["metrics"] = [None]  # unlike any, unless nothing that has run reads or mends them
    for path in sorted([*lane.run.glob("samples/step_*"), *lane.run.glob("eval/*")]):
        name = str(path.relative_to(lane.run))
        if path.suffix == ".npz" and "partial" not in name:
            with contextlib.suppress(Exception), np.load(path) as arrays:  # of many kinds, where it is damaged
                found[name] = {k: v.tobytes() for k, v in sorted(arrays.items())}
        elif path.suffix == ".json" and path.parent.name == "eval":
            with contextlib.suppress(ValueError):
                found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".png" and path.parent.name == "samples":
            found[name] = path.read_bytes()
    return found


def faults(lane: Lane, ended: Ended, expected: dict, exempt: str = "nothing") -> list[str]:
    """What is wrong with a command that has ended with 0, against the undisturbed run."""
    try:
        found = results(lane, ended)
    except (OSError, ValueError, KeyError) as error:
        return [f"wrong: {error}"]
    told = re.search("damaged|lost", ended.err) is not None
    bad = []
    for name, value in expected.items():
        if name.startswith(exempt) or found.get(name) == value:
            continue
        if name == "metrics" and told and all(line in value for line in found[name]):
            continue
        bad.append(f"{'lost grids' if name.startswith('samples') and name not in found else 'wrong'}: {name}")
        bad[-1] += f" {found[name]} for {value}" if name == "printed" else ""
    return bad


# --- kills ------------------------------------------------------------------------------------------------------------


def kill(lane: Lane, rng: random.Random) -> tuple[str, list[str]]:
    """One trial: killed at random moments, then let be; (when, what went wrong)."""
    lane.reset("empty")
    saved, moments = 0, []
    for _ in range(rng.choice((1, 1, 2))):
        moments.append(rng.uniform(0, 1.1 * lane.duration))
        process = lane.start(TRAIN)
        process.join(moments[-1])
        process.kill()
        process.join()
        saved = max([saved, *lane.saved()])
    what = f"killed after {', '.join(f'{m:.2f}' for m in moments)} s"
    ended = lane.command(TRAIN)
    if bad := broken(ended):
        return what, bad
    if ended.code != 0:
        return what, [f"wrong: exit {ended.code}: {ended.err[-300:]}"]
    resumed = re.search(r"training goes on at step (\d+)", ended.err)
    bad = [f"lost saves: {saved}"] if saved and (resumed is None or int(resumed[1]) < saved) else []
    if left := [p.name for p in lane.run.rglob("*") if re.search(r"\.partial$|-tmp", p.name)]:
        bad.append(f"wrong: left over {left}")
    return what, bad + faults(lane, ended, lane.expected["train"])


def broken(ended: Ended) -> list[str]:
    """Hangs and tracebacks."""
    bad = ["hangs"] if ended.code is None else []
    return bad + ([f"tracebacks: {ended.err[-600:]}"] if "Traceback" in ended.err + ended.out else [])


# --- damages ----------------------------------------------------------------------------------------------------------


def damage(path: Path, others: list[Path], rng: random.Random) -> str:
    """Do something to a file or folder; what it was, in a word."""
    if path.is_dir():
        kind = rng.choice(("delete", "rename"))
        shutil.rmtree(path) if kind == "delete" else path.rename(path.with_name(path.name + ".old"))
        return kind
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "flip", "zero", "cut", "empty", "delete", "junk", "exchange"))
    first = rng.randrange(max(len(data), 1))
    if kind == "flip" and data:
        data[first] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        data[first : first + 64] = bytes(len(data[first : first + 64]))
    elif kind == "cut":
        del data[first:]
    elif kind == "empty":
        data.clear()
    elif kind == "junk":
        data = bytearray(rng.randbytes(len(data)))
    elif kind == "exchange":
        data = bytearray(rng.choice(others).read_bytes())
    path.unlink() if kind == "delete" else path.write_bytes(data)
    return kind


def other_pixels(path: Path) -> str:
    """Make another image of one, as another data set under the same path would have it."""
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 128
    Image.fromarray(pixels).save(path)
    return "other pixels"


KINDS = {
    "config": ["config.json"], "metrics": ["metrics.jsonl"], "notes": ["checkpoints/*/meta/metadata"],
    "state": ["checkpoints/*/state/**/*"], "marks": ["checkpoints/*/_*", "checkpoints/*/*/_*"],
    "checkpoint": ["checkpoints/*", "checkpoints/*/*"], "folder": ["checkpoints", "samples", "plots", "eval"],
    "samples": ["samples/*"], "plots": ["plots/*"], "reports": ["eval/*"], "cache": ["../cache/**/*"],
    "images": ["../images/*"],
}  # fmt: skip


def disturb(lane: Lane, rng: random.Random) -> tuple[str, list[str]]:
    """One trial: (what was damaged, what went wrong)."""
    base = rng.choice(("half", "half", "whole", "evaluating"))
    lane.reset(base)
    mode, argv = ("train", TRAIN) if base == "half" else ("eval", EVAL)
    found = {kind: [p for glob in globs for p in sorted(lane.run.glob(glob))] for kind, globs in KINDS.items()}
    found = {k: [p for p in v if k in ("checkpoint", "folder") or p.is_file()] for k, v in found.items()}
    kind = rng.choice([k for k, v in found.items() if v])
    path = rng.choice(found[kind])
    others = [p for p in lane.folder.rglob("*") if p.is_file() and p != path]
    place = os.path.relpath(path, lane.folder)
    how = other_pixels(path) if kind == "images" and rng.random() < 0.7 else damage(path, others, rng)
    what, whole = f"{base}: {place}, {how}", lane.pristine[base] / place
    # Results that no command reads stay as the damage has left them.
    results_of = {"metrics": "metrics"} if mode == "eval" else {}  # which eval does not read
    results_of |= {"samples": "samples", "plots": "plots", "reports": "eval"}
    exempt = results_of.get(kind) or (path.name if kind == "folder" and path.name != "checkpoints" else "nothing")
    ended = lane.command(argv)
    if bad := broken(ended):
        return what, bad
    if ended.code == 0 and kind == "images":
        return what, mixed(lane, ended, trains=mode == "train" and int(path.stem) % 10 > 0)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code == 0 and mode == "eval":  # that of an older step, which the report names, is no error
        errors = [line for line in ended.err.splitlines() if re.search(r"is damaged, checkpoint \d+ is used", line)]
    if ended.code != 0 or errors:
        if ended.code not in (0, 1) or len(errors) != 1:
            return what, [f"wrong: exit {ended.code}: {ended.err[-300:]}"]
        what += f": {errors[0][:200]}"
        restore(path, whole)
        ended = lane.command(argv)
        if ended.code != 0:
            return what, [f"wrong: after the remedy exit {ended.code}: {ended.err[-300:]}"]
    return what, faults(lane, ended, lane.expected[mode], exempt)


def mixed(lane: Lane, ended: Ended, *, trains: bool) -> list[str]:
    """What is wrong where images have changed: training that goes on, or figures unlike those of one evaluation."""
    if trains:
        return ["mixed: training went on"]
    printed = results(lane, ended)["printed"]
    shutil.rmtree(lane.run / "eval")
    again = results(lane, lane.command(EVAL))["printed"]
    return [] if printed[0] == again[0] else [f"mixed: {printed[0]}, and from the start {again[0]}"]


def restore(path: Path, whole: Path) -> None:
    """Put back what was there, as the error advises."""
    if whole.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(whole, path)


# --- all of it --------------------------------------------------------------------------------------------------------


def prepare(lane: Lane) -> None:
    """The undisturbed run, one that was killed half-way, one whose evaluation was: what trials begin with."""
    images = lane.folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(40):
        Image.fromarray(rng.integers(256, size=(4, 4), dtype=np.uint8)).save(images / f"{n:02}.png")
    lane.keep("empty")
    began = time.monotonic()
    ended = lane.command(TRAIN)
    lane.duration = time.monotonic() - began
    if ended.code != 0:
        sys.exit(f"the undisturbed run failed: {ended.err}")
    lane.expected["train"] = results(lane, ended)
    lane.keep("whole")
    lane.expected["eval"] = results(lane, lane.command(EVAL))
    lane.reset("whole")  # the report of training stays: its settings are others
    kill_when(lane, EVAL, lambda: any((lane.run / "eval").glob("*.partial.npz")))
    lane.keep("evaluating")
    lane.reset("empty")
    kill_when(lane, TRAIN, lambda: 20 in lane.saved())
    lane.keep("half")


def kill_when(lane: Lane, argv: list[str], ready) -> None:
    """Run a command until `ready()`."""
    process = lane.start(argv)
    while process.is_alive() and not ready():
        time.sleep(0.001)
    process.kill()
    process.join()


def main() -> None:
    """All trials, two at a time."""
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="200 kills and 500 damages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=2, help="trials at the same time")
    parser.add_argument("--verbose", action="store_true", help="a line for every trial")
    args = parser.parse_args()
    kills, damages = (200, 500) if args.full else (10, 50)
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "MPLBACKEND": "agg"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["score_sde.main", "score_sde.modes", "grain", "diffrax", "matplotlib.pyplot"])
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "config.py").write_text(CONFIG)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lanes: queue.Queue[Lane] = queue.Queue()
        for number in range(args.lanes):
            lane = Lane(root, number, context)
            prepare(lane)
            lanes.put(lane)

        def trial(number: int) -> None:
            lane, rng = lanes.get(), random.Random(f"{args.seed} {number}")
            try:
                what, bad = (kill if number < kills else disturb)(lane, rng)
            finally:
                lanes.put(lane)
            counts.update({fault.partition(":")[0] for fault in bad})
            if bad or args.verbose:
                print(f"{number}: {what}: {'; '.join(bad) or 'ok'}", flush=True)

        with ThreadPoolExecutor(args.lanes) as pool:
            list(pool.map(trial, range(kills + damages)))
    figures = Figures()
    for fault in FAULTS:
        figures.at_most(f"{fault}, of {kills} kills and {damages} damages", counts[fault], 0)
    figures.end(args.check)


if __name__ == "__main__":
    main()
