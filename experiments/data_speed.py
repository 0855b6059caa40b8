"""Images/s that the pipeline alone delivers (gather, flips, transfer to the device) against what training consumes.

For the digits, Fashion-MNIST and the published CIFAR-10 network (8 images a step), on generated files in the published
layouts; measured in turns, median of the ratios.  The CIFAR-10 step compiles for minutes.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import Figures, arguments, training_step

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
import vp_cifar  # noqa: E402
import vp_digits  # noqa: E402
import vp_fashion_mnist  # noqa: E402

from score_sde.config import build  # noqa: E402
from score_sde.data import batches  # noqa: E402
from score_sde.models.cpu import set_up_cpu  # noqa: E402


def write_cifar(folder: Path, rng: np.random.Generator) -> None:
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = rng.integers(0, 256, (10_000, 3073), np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())


def write_fashion_mnist(folder: Path, rng: np.random.Generator) -> None:
    images, labels = rng.integers(0, 256, (60_000, 28, 28), np.uint8), rng.integers(0, 10, 60_000, np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / f"train-{kind}-ubyte").write_bytes(header + array.tobytes())


def ratios(config, batch: int, rounds: int = 3) -> list[tuple[float, float]]:
    """(images/s of the pipeline, images/s of the step) in each round."""
    run = build(config)
    options = dataclasses.replace(run.training, batch_size=batch)
    state, dispatch, sharding = training_step(run, options)
    stream = batches(run.experiment.load("train"), batch, 0, flip=run.flip, stack=options.steps_per_dispatch)
    images = batch * options.steps_per_dispatch

    def rate(call, seconds: float) -> float:
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            call()
            count += images
        return count / elapsed

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(dispatch(state, x))

    x = jax.device_put(next(stream), sharding)
    step()
    found = []
    for _ in range(rounds):
        pipeline = rate(lambda: jax.block_until_ready(jax.device_put(next(stream), sharding)), 2.0)
        found.append((pipeline, rate(step, 2.0)))
    stream.close()
    return found


if __name__ == "__main__":
    args = arguments(__doc__).parse_args()
    set_up_cpu((8, 64))
    figures, rng = Figures(), np.random.default_rng(0)
    sets = [("digits", vp_digits, None, 64), ("Fashion-MNIST", vp_fashion_mnist, write_fashion_mnist, 64)]
    for name, module, write, batch in [*sets, ("CIFAR-10", vp_cifar, write_cifar, 8)]:
        with tempfile.TemporaryDirectory() as folder:
            config = module.get_config()
            if write:
                write(Path(folder), rng)
                config.data.dir = folder
            found = ratios(config, batch)
        pipeline, step = (statistics.median(rates) for rates in zip(*found, strict=True))
        print(f"{name}: pipeline {pipeline:,.0f} images/s, training {step:,.2f} images/s", flush=True)
        figures.at_least(f"{name}: pipeline / training", statistics.median(p / s for p, s in found), 5)
    figures.end(args.check)
