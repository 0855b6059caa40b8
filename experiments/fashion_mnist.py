"""Test likelihood and samples of configs/vp_fashion_mnist.py, from the weights that are kept here.

    python -m score_sde.main --config=configs/vp_fashion_mnist.py --mode=train     trains them anew
    python experiments/fashion_mnist.py --check                                     asks those of results/

Evaluates the first 2,000 test images, and compares with the report in results/; --dir reads
the images from a folder instead of fetching them.  With --workdir=RUN, a finished run, it first makes that run's
weights, learning curve, loss by noise level, report and grid of samples those of results/.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from common import RESULTS, Figures, arguments, config_of, load_weights, save_weights

from score_sde.config import build
from score_sde.data import Subset
from score_sde.evaluation.likelihood import evaluate_likelihood
from score_sde.evaluation.samples import generate
from score_sde.files import write_bytes, write_json
from score_sde.models.cpu import set_up_cpu
from score_sde.plots import picture

NAME = "vp_fashion_mnist"

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--dir", help="folder of the four IDX files")
    parser.add_argument("--workdir", type=Path, help="a finished run, to be kept in results/")
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    config, figures = config_of(NAME), Figures()
    config.data.dir = args.dir
    set_up_cpu((config.eval.batch_size, config.sampling.batch_size))
    run, weights = build(config), RESULTS / f"{NAME}_ema.npz"
    if args.workdir:
        save_weights(args.workdir, weights)
        for plot in ("learning_curve", "loss_by_level"):
            latest = max((args.workdir / "plots").glob(f"{plot}*.png"))
            shutil.copyfile(latest, RESULTS / f"{NAME}_{plot}.png")
    params = load_weights(weights)
    size = weights.stat().st_size / 1e6
    print(f"{sum(v.size for v in np.load(weights).values()):,} parameters")
    figures.at_most("weights, MB", size, 10)

    samples = generate(run.experiment, params, run.sampling, seed=run.sampling_seed, progress=True).x
    grid = picture(samples, run.experiment.levels)
    # The kept report is of the first images, which are of all classes in this set.
    first = cache(lambda split: Subset(run.experiment.load(split), np.arange(args.images)))
    options = dataclasses.replace(run.evaluation, num_examples=None, bound="none", round_trip=0)
    partial = Path(tempfile.gettempdir()) / f"{NAME}.partial.npz"  # goes on where it was cut off
    experiment = dataclasses.replace(run.experiment, load=first)
    report, _ = evaluate_likelihood(
        experiment, params, options, step=0, seed=run.eval_seed, partial_file=partial
    )  # fmt: skip
    partial.unlink(missing_ok=True)
    print(report.line(), report.table(), sep="\n")
    if args.workdir:
        step = max(int(p.name) for p in (args.workdir / "checkpoints").iterdir() if p.name.isdecimal())
        write_bytes(RESULTS / f"{NAME}.png", grid)
        write_json(RESULTS / f"{NAME}.json", vars(dataclasses.replace(report, step=step)))
    kept = json.loads((RESULTS / f"{NAME}.json").read_text())
    if args.images != kept["examples"]:
        sys.exit(f"no figure of {args.images} images is kept, but of {kept['examples']}")
    figures.at_most("test bits/dim, distance from the kept report", abs(report.value - kept["value"]), 0.002)
    figures.end(args.check)
