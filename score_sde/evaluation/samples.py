"""Samples of a trained model, in batches of one size, sample i from key i whatever the batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.files import write_arrays, write_bytes
from score_sde.plots import picture
from score_sde.sampling import Samples
from score_sde.sdes import AffineSDE, Score
from score_sde.training.experiment import Experiment
from score_sde.training.mesh import data_mesh, per_device
from score_sde.training.progress import Progress


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    solve: `solve(keys (B,), sde, score, shape) -> Samples`: `sample`, `sample_adaptive` or `sample_sde` with their
        options bound.
    steps: the number of steps where `solve` takes `progress=`, else None.
    transform: `transform(score, sde) -> score`, such as Clipped, or None.
    """

    solve: Callable[..., Samples]
    num_samples: int
    batch_size: int
    steps: int | None = None
    transform: Callable[[Score, AffineSDE], Score] | None = None


class _Watched:
    """What a solve reports its steps to: whoever watches, if any.  One object per program, which holds on to it."""

    def __init__(self):
        self.watch: Callable[[int], None] | None = None

    def __call__(self, step) -> None:
        if self.watch is not None:
            self.watch(int(step))


@lru_cache(maxsize=1)  # snapshots in a training ask again and again
def _compiled(experiment: Experiment, options: SamplingOptions) -> tuple[Callable, _Watched]:
    """`f(params, keys (B,)) -> (x, nfe)` on all devices, compiled once per B (a multiple of the device count)."""
    watched = _Watched()
    report = {} if options.steps is None else {"progress": watched}

    def run(params, keys):
        score = experiment.score(params)
        if options.transform is not None:
            score = options.transform(score, experiment.sde)
        out = options.solve(keys, experiment.sde, score, (keys.shape[0], *experiment.shape), **report)
        return out.x, out.nfe

    return per_device(data_mesh(), run), watched


def generate(
    experiment: Experiment, params: Any, options: SamplingOptions, *, seed: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """`num_samples` samples as the data are stored (N, *shape), grey levels or float32; and their NFE (N,).

    Raises:
        FloatingPointError: a sample is not finite.
    """
    run, watched = _compiled(experiment, options)
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    bar = Progress("sample", options.num_samples) if progress else None
    xs, nfes = [], []
    for first in range(0, options.num_samples, options.batch_size):
        if bar and options.steps:
            watched.watch = _within_batch(bar, first, options)
        x, nfe = run(params, keys_of(jnp.arange(first, first + options.batch_size)))  # the surplus of the last is cut
        if not bool(jnp.all(jnp.isfinite(x))):
            raise FloatingPointError(
                f"samples {first} to {first + options.batch_size - 1} are not all finite. Take more sampling.steps, "
                "another sampling.sampler, or train longer."
            )
        watched.watch = None
        xs.append(experiment.unscale(x))
        nfes.append(np.asarray(nfe))
        if bar:
            bar.update(min(first + options.batch_size, options.num_samples))
    if bar:
        bar.close()
    return tuple(np.concatenate(parts)[: options.num_samples] for parts in (xs, nfes))


def _within_batch(bar: Progress, first: int, options: SamplingOptions, *, pause: float = 5.0) -> Callable[[int], None]:
    """Report the share of a batch's steps that is done, at most every `pause` seconds and never backwards."""
    seen, last = 0, None  # the clock starts with the first step: what is before it compiles

    def watch(step: int) -> None:
        nonlocal seen, last
        last = time.monotonic() if last is None else last
        if step > seen and time.monotonic() - last > pause:
            seen, last = step, time.monotonic()
            done = min(first + options.batch_size * step // options.steps, options.num_samples - 1)
            bar.update(done, f"step {step}/{options.steps}")

    return watch


def write_samples(samples: np.ndarray, levels: int | None, stem: Path, *, shown: int = 100) -> list[Path]:
    """Write stem.npz (array `samples`) and, where a picture suits the data, stem.png of the first `shown`."""
    written = [stem.with_suffix(".npz")]
    write_arrays(written[0], samples=samples)
    png = picture(samples[:shown] if levels is not None else samples, levels)
    if png is not None:
        written.append(stem.with_suffix(".png"))
        write_bytes(written[1], png)
    return written
