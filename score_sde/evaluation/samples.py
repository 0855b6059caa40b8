"""Samples of a trained model, in batches of one size, sample i from key i whatever the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.files import write_arrays, write_bytes
from score_sde.plots import picture
from score_sde.sampling import Sampler, sample
from score_sde.training.experiment import Experiment
from score_sde.training.mesh import data_mesh, per_device
from score_sde.training.progress import Progress


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample: `sampler` takes `steps` steps to `t_end` (the SDE's default where None)."""

    sampler: Sampler
    steps: int
    t_end: float | None
    denoise: bool
    num_samples: int
    batch_size: int


def make_sampler(experiment: Experiment, options: SamplingOptions) -> Callable[[Any, jax.Array], jax.Array]:
    """`f(params, keys (B,)) -> x (B, *shape)` on all devices, compiled once per B (a multiple of the device count)."""

    def run(params, keys):
        return sample(
            keys,
            experiment.sde,
            experiment.score(params),
            (keys.shape[0], *experiment.shape),
            sampler=options.sampler,
            steps=options.steps,
            t_end=options.t_end,
            denoise=options.denoise,
        ).x

    return per_device(data_mesh(), run)


def generate(experiment: Experiment, params: Any, options: SamplingOptions, *, seed: int, progress: bool) -> np.ndarray:
    """`num_samples` samples as the data are stored (N, *shape): grey levels, or float32.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    run = make_sampler(experiment, options)
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    bar = Progress("sample", options.num_samples) if progress else None
    parts = []
    for first in range(0, options.num_samples, options.batch_size):
        x = run(params, keys_of(jnp.arange(first, first + options.batch_size)))  # the surplus of the last is cut
        if not bool(jnp.all(jnp.isfinite(x))):
            raise FloatingPointError(
                f"samples {first} to {first + options.batch_size - 1} are not all finite. Take more sampling.steps, or "
                "train longer."
            )
        parts.append(experiment.unscale(x))
        if bar:
            bar.update(min(first + options.batch_size, options.num_samples))
    if bar:
        bar.close()
    return np.concatenate(parts)[: options.num_samples]


def write_samples(samples: np.ndarray, levels: int | None, stem: Path, *, shown: int = 100) -> list[Path]:
    """Write stem.npz (array `samples`) and, where a picture suits the data, stem.png of the first `shown`."""
    written = [stem.with_suffix(".npz")]
    write_arrays(written[0], samples=samples)
    png = picture(samples[:shown] if levels is not None else samples, levels)
    if png is not None:
        written.append(stem.with_suffix(".png"))
        write_bytes(written[1], png)
    return written
