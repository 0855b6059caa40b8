"""The main job on the data that come with the package: how long it takes, and whether the digits can be read.

Trains configs/vp_digits.py in a fresh workdir (or takes a finished one, --workdir), then asks a classifier that was
trained on clean digits about the 100 samples: a sample is legible where one class has a probability of at least 0.9.
--save copies the samples' grid, the report and the EMA weights to experiments/results/.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, Figures, arguments, save_weights
from judges import train_judge

from score_sde.data import digits
from score_sde.evaluation.artefacts import fullest, reports


def run_main_job(workdir: Path) -> str:
    """Train as a newcomer would; returns what was printed."""
    command = [sys.executable, "-m", "score_sde.main", "--config=configs/vp_digits.py", f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="")
    return done.stdout


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, help="a finished run of configs/vp_digits.py")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    figures = Figures()
    workdir = args.workdir or Path(tempfile.mkdtemp()) / "vp_digits"
    if args.workdir is None:
        clock = re.search(r"elapsed (\d+):(\d+)", run_main_job(workdir))
        figures.at_most("main job, minutes", int(clock[1]) + int(clock[2]) / 60, 5)
    last = max((workdir / "samples").glob("step_*.npz"))
    samples = np.load(last)["samples"][:100]
    probabilities, accuracy = train_judge(digits("train"), digits("test"))
    best = np.asarray(probabilities(samples)).max(-1)
    print(f"classifier: {accuracy:.1%} of clean test digits; classes among the samples: "
          f"{np.bincount(np.argmax(probabilities(samples), -1), minlength=10).tolist()}")  # fmt: skip
    figures.at_least("legible samples of 100, %", 100 * float(np.mean(best >= 0.9)), 80)
    of_all = fullest(reports(workdir))
    report = json.loads(of_all.read_text())
    print(f"test bits/dim: {report['value']:.3f} +- {report['standard_error']:.3f}")
    if args.save:
        shutil.copyfile(last.with_suffix(".png"), RESULTS / "vp_digits.png")
        shutil.copyfile(of_all, RESULTS / "vp_digits.json")
        save_weights(workdir, RESULTS / "vp_digits_ema.npz")
    figures.end(args.check)
