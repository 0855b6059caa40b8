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

from score_sde.evaluation.artefacts import write_artefact
from score_sde.evaluation.guided import GuidanceOptions
from score_sde.evaluation.provenance import Provenance, described
from score_sde.plots import animation, picture, strip, suits
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

    def settings(self, experiment: Experiment, *, seed: int) -> dict[str, Any]:
        """All that decides on samples but the weights, as JSON."""
        how = {k: v for k, v in described(self).items() if k not in ("name", "steps", "solve", "sampler")}
        how["guidance"] = None if self.guidance == GuidanceOptions() else how["guidance"]
        return {**described(self.solve), **how, "seed": seed, "sde": described(experiment.sde)}


class Generated(NamedTuple):
    """x: samples (N, *shape) as the data are stored, grey levels or float32.  nfe: (N,), evaluations of the score.
    states: (moments, n, *shape), the first samples on their way, in the model's own units; None unless asked for.
    finite: (N,), False for a sample that is of no use, since it has nan or infinity."""

    x: np.ndarray
    nfe: np.ndarray
    states: np.ndarray | None
    finite: np.ndarray


class NonFiniteSamples(FloatingPointError):
    """Some samples are not finite; `found` has what there is, which may have taken hours."""

    def __init__(self, message: str, found: Any):
        super().__init__(message)
        self.found = found


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
        NonFiniteSamples: a sample is not finite.  The others are in its `found`; a batch without any ends the work.
    """
    task, weights = guide or (None, None)
    run, watched = _compiled(experiment, options, task)
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    bar = Progress("sample", options.num_samples) if progress else None
    xs, nfes, states, finite = [], [], [], []
    followed = min(options.num_samples, _shown(experiment.levels)) if options.trajectory else 0
    for first in range(0, options.num_samples, options.batch_size):
        if bar and options.steps:
            watched.watch = within_batch(bar, first, options, options.num_samples)
        x, nfe, moments = run(
            (params, weights), keys_of(jnp.arange(first, first + options.batch_size))
        )  # the surplus of the last is cut
        watched.watch = None
        finite.append(np.asarray(jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))))
        xs.append(experiment.unscale(x if experiment.levels is None else jnp.nan_to_num(x)))
        nfes.append(np.asarray(nfe))
        if first < followed:
            states.append(np.asarray(moments[: followed - first]).swapaxes(0, 1))
        if bar:
            bar.update(min(first + options.batch_size, options.num_samples))
        if not finite[-1].any():
            break
    if bar:
        bar.close()
    x, nfe, good = (np.concatenate(parts)[: options.num_samples] for parts in (xs, nfes, finite))
    found = Generated(x, nfe, np.concatenate(states, axis=1) if states else None, good)
    if not good.all():
        advice = "Take more sampling.steps, another sampling.sampler, sampling.clip=static, or train longer."
        raise NonFiniteSamples(f"{bad_ones(good)}. {advice}", found)
    return found


def bad_ones(finite: np.ndarray) -> str:
    """'3 of 500 samples are not finite (17, 18, 400)'."""
    bad = np.flatnonzero(~finite)
    some = ", ".join(map(str, bad[:8])) + (" ..." if len(bad) > 8 else "")
    return f"{len(bad)} of {len(finite)} samples are not finite ({some})"


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


def write_samples(
    experiment: Experiment, found: Generated, stem: Path, made: Provenance, *, replace: bool = False
) -> list[Path]:
    """Write stem.json, stem.npz (array `samples`; where some are not finite, also `finite`) and, where they suit the
    data, stem.png of the first finite ones, stem_strip.png and stem.gif of their way from noise."""
    levels, good, pictures = experiment.levels, found.finite, {}
    arrays = {"samples": found.x} | ({} if good.all() else {"finite": good})
    figures = {"samples": len(good), "not_finite": np.flatnonzero(~good).tolist(), "nfe": float(found.nfe.mean())}
    if suits(found.x.shape[1:], levels) and good.any():
        pictures[".png"] = lambda: picture(found.x[good][: _shown(levels)], levels)
        if found.states is not None and good.all():
            shown = np.stack([experiment.unscale(jnp.asarray(moment)) for moment in scaled_for_display(found.states)])
            pictures |= {"_strip.png": lambda: strip(shown, levels), ".gif": lambda: animation(shown, levels)}
    return write_artefact(stem, made, figures=figures, arrays=arrays, pictures=pictures, replace=replace)


def scaled_for_display(states: np.ndarray) -> np.ndarray:
    """Moments (moments, N, *shape), each shifted and scaled to the mean and the standard deviation of the last.

    A state of VE is a thousand times larger than the data.  The spread of a state is sqrt(alpha^2 s^2 + sigma^2), with
    s that of the data: dividing by it shows all noise levels alike.  The last moment is left as it is.
    """
    axes = tuple(range(1, states.ndim))
    mean, spread = states.mean(axis=axes, keepdims=True), states.std(axis=axes, keepdims=True)
    shown = mean[-1] + (states - mean) * (spread[-1] / np.maximum(spread, 1e-12))
    return np.concatenate([shown[:-1], states[-1:]])
