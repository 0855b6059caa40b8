"""Samples of a trained model, in batches of one size, sample i from key i whatever the batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.evaluation.guided import GuidanceOptions
from score_sde.files import write_arrays, write_bytes
from score_sde.plots import animation, picture, strip
from score_sde.sampling import Sampler, Samples
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
    guidance: whose score it is.
    sampler: the one of a fixed grid that `solve` has bound, or None.
    trajectory: how many moments to keep from the noise to the sample, which `solve` must then take; 0 for none.
    """

    solve: Callable[..., Samples]
    num_samples: int
    batch_size: int
    steps: int | None = None
    transform: Callable[[Score, AffineSDE], Score] | None = None
    trajectory: int = 0
    guidance: GuidanceOptions = GuidanceOptions()
    sampler: Sampler | None = None


class Generated(NamedTuple):
    """x: samples (N, *shape) as the data are stored, grey levels or float32.  nfe: (N,), evaluations of the score.
    states: (moments, n, *shape), the first samples on their way, in the model's own units; None unless asked for."""

    x: np.ndarray
    nfe: np.ndarray
    states: np.ndarray | None


class Watched:
    """What a solve reports its steps to: whoever watches, if any.  One object per program, which holds on to it."""

    def __init__(self):
        self.watch: Callable[[int], None] | None = None

    def __call__(self, step) -> None:
        if self.watch is not None:
            self.watch(int(step))


@lru_cache(maxsize=1)  # snapshots in a training ask again and again
def _compiled(experiment: Experiment, options: SamplingOptions, task: Any = None) -> tuple[Callable, Watched]:
    """`f((params, those of the guide), keys (B,)) -> (x, nfe, states)` on all devices.

    Compiled once per B, a multiple of the device count.  `task` is the guide's.

    states: (B, moments, *shape), the last of them x itself (which may be denoised); None where none are asked for.
    """
    watched = Watched()
    report = {} if options.steps is None else {"progress": watched}
    report |= {"trajectory": options.trajectory - 1} if options.trajectory else {}

    def run(params, keys):
        own, others = params
        score = options.guidance.score(experiment, own, (task, others))
        if options.transform is not None:
            score = options.transform(score, experiment.sde)
        out = options.solve(keys, experiment.sde, score, (keys.shape[0], *experiment.shape), **report)
        if not options.trajectory:
            return out.x, out.nfe, None
        return out.x, out.nfe, jnp.moveaxis(out.trajectory.at[-1].set(out.x), 0, 1)

    return per_device(data_mesh(), run), watched


def generate(
    experiment: Experiment, params: Any, options: SamplingOptions, *, seed: int, progress: bool, guide: Any = None
) -> Generated:
    """`num_samples` samples of the model, and the trajectories of as many of the first as a picture shows.

    `guide` is what the guidance needs besides: (task, parameters) of a classifier or of a weaker state.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    task, weights = guide or (None, None)
    run, watched = _compiled(experiment, options, task)
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    bar = Progress("sample", options.num_samples) if progress else None
    xs, nfes, states = [], [], []
    followed = min(options.num_samples, _shown(experiment.levels)) if options.trajectory else 0
    for first in range(0, options.num_samples, options.batch_size):
        if bar and options.steps:
            watched.watch = within_batch(bar, first, options, options.num_samples)
        x, nfe, moments = run(
            (params, weights), keys_of(jnp.arange(first, first + options.batch_size))
        )  # the surplus of the last is cut
        if not bool(jnp.all(jnp.isfinite(x))):
            raise FloatingPointError(
                f"samples {first} to {first + options.batch_size - 1} are not all finite. Take more sampling.steps, "
                "another sampling.sampler, or train longer."
            )
        watched.watch = None
        xs.append(experiment.unscale(x))
        nfes.append(np.asarray(nfe))
        if first < followed:
            states.append(np.asarray(moments[: followed - first]).swapaxes(0, 1))
        if bar:
            bar.update(min(first + options.batch_size, options.num_samples))
    if bar:
        bar.close()
    x, nfe = (np.concatenate(parts)[: options.num_samples] for parts in (xs, nfes))
    return Generated(x, nfe, np.concatenate(states, axis=1) if states else None)


def within_batch(
    bar: Progress, first: int, options: SamplingOptions, total: int, *, pause: float = 5.0
) -> Callable[[int], None]:
    """Report the share of a batch's steps that is done, at most every `pause` seconds and never backwards."""
    seen, last = 0, None  # the clock starts with the first step: what is before it compiles

    def watch(step: int) -> None:
        nonlocal seen, last
        last = time.monotonic() if last is None else last
        if step > seen and time.monotonic() - last > pause:
            seen, last = step, time.monotonic()
            done = min(first + options.batch_size * step // options.steps, total - 1)
            bar.update(done, f"step {step}/{options.steps}")

    return watch


def _shown(levels: int | None) -> int:
    """How many samples a picture shows: images, and points."""
    return 100 if levels is not None else 50_000


def write_samples(samples: np.ndarray, levels: int | None, stem: Path) -> list[Path]:
    """Write stem.npz (array `samples`) and, where a picture suits the data, stem.png of the first of them."""
    written = [stem.with_suffix(".npz")]
    write_arrays(written[0], samples=samples)
    png = picture(samples[: _shown(levels)], levels)
    if png is not None:
        written.append(stem.with_suffix(".png"))
        write_bytes(written[1], png)
    return written


def scaled_for_display(states: np.ndarray) -> np.ndarray:
    """Moments (moments, N, *shape), each shifted and scaled to the mean and the standard deviation of the last.

    A state of VE is a thousand times larger than the data.  The spread of a state is sqrt(alpha^2 s^2 + sigma^2), with
    s that of the data: dividing by it shows all noise levels alike.  The last moment is left as it is.
    """
    axes = tuple(range(1, states.ndim))
    mean, spread = states.mean(axis=axes, keepdims=True), states.std(axis=axes, keepdims=True)
    shown = mean[-1] + (states - mean) * (spread[-1] / np.maximum(spread, 1e-12))
    return np.concatenate([shown[:-1], states[-1:]])


def write_trajectory(experiment: Experiment, states: np.ndarray, stem: Path) -> list[Path]:
    """Write stem_strip.png and stem.gif of `generate`'s states, scaled for display: from noise to the samples."""
    shown = np.stack([experiment.unscale(jnp.asarray(moment)) for moment in scaled_for_display(states)])
    written = [stem.with_name(f"{stem.name}_strip.png"), stem.with_suffix(".gif")]
    for path, draw in zip(written, (strip, animation), strict=True):
        write_bytes(path, draw(shown, experiment.levels))
    return written
