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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import RESULTS, ROOT, Figures, arguments, save_weights

from score_sde.data import batches, digits


class Classifier(nn.Module):
    """A small convolutional classifier of clean 8x8 digits."""

    @nn.compact
    def __call__(self, x, key=None):
        x = x.astype(jnp.float32) / 8 - 1
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


def train_classifier(steps: int = 1500):
    """The classifier's probabilities as a function, and its accuracy on the test digits."""
    net, optimizer = Classifier(), optax.adam(1e-3)
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, batch, key):
        def loss(p):
            logits = net.apply(p, batch["x"], key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    stream = batches(digits("train"), 64, seed=0)
    for n in range(steps):
        params, opt_state = step(params, opt_state, next(stream), jax.random.fold_in(jax.random.key(1), n))
    stream.close()
    probabilities = jax.jit(lambda x: jax.nn.softmax(net.apply(params, x)))
    test = digits("test")
    return probabilities, float(np.mean(np.argmax(probabilities(test.x), -1) == test.labels))


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
    probabilities, accuracy = train_classifier()
    best = np.asarray(probabilities(samples)).max(-1)
    print(f"classifier: {accuracy:.1%} of clean test digits; classes among the samples: "
          f"{np.bincount(np.argmax(probabilities(samples), -1), minlength=10).tolist()}")  # fmt: skip
    figures.at_least("legible samples of 100, %", 100 * float(np.mean(best >= 0.9)), 80)
    report = json.loads((workdir / "eval" / "likelihood_test.json").read_text())
    print(f"test bits/dim: {report['value']:.3f} +- {report['standard_error']:.3f}")
    if args.save:
        shutil.copyfile(last.with_suffix(".png"), RESULTS / "vp_digits.png")
        shutil.copyfile(workdir / "eval" / "likelihood_test.json", RESULTS / "vp_digits.json")
        save_weights(workdir, RESULTS / "vp_digits_ema.npz")
    figures.end(args.check)
