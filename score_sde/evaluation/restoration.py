"""Restoring images from measurements: posterior samples of a trained model, how good they are, and their picture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.arrays import fold_in, normal, sample_keys
from score_sde.data import DataError, Source, describe, read_image
from score_sde.evaluation.artefacts import write_artefact
from score_sde.evaluation.provenance import Provenance
from score_sde.evaluation.samples import NonFiniteSamples, SamplingOptions, Watched, bad_ones, within_batch
from score_sde.guidance.linear import conjugate_gradients
from score_sde.guidance.operators import Operator
from score_sde.plots import restorations, suits
from score_sde.sampling import Clipped
from score_sde.training.experiment import Experiment
from score_sde.training.mesh import data_mesh, per_device
from score_sde.training.progress import Progress

SHOWN = (8, 6)  # examples, and samples of each, in a picture


@dataclass(frozen=True)
class RestoreOptions:
    """What is measured and how it is restored.

    operator, method: of `evaluation.measured`.
    noise: standard deviation of the measurement's noise, in units of the scaled data (`data.range`).
    examples: how many of the test split; samples: of the posterior of each.
    input: a file to restore instead of test examples; measured: whether it holds the measurement itself.
    """

    operator: Any
    method: Any
    noise: float = 0.05
    examples: int = 4
    samples: int = 8
    input: str | None = None
    measured: bool = False


class Restored(NamedTuple):
    """truth: (N, *shape) scaled data, None where only the measurement is known.  measurements: (N, *m).
    samples: (N, S, *shape).  nfe: evaluations of the score that a sample took, on average."""

    truth: np.ndarray | None
    measurements: np.ndarray
    samples: np.ndarray
    nfe: float

    @property
    def finite(self) -> np.ndarray:
        """(N, S), False for a sample that is of no use, since it has nan or infinity."""
        return np.isfinite(self.samples).reshape(*self.samples.shape[:2], -1).all(axis=2)


def measured_shape(experiment: Experiment, options: RestoreOptions) -> tuple[int, ...]:
    """The shape of one measurement; nothing is computed.

    Raises:
        ValueError: the operator is not for data of this shape.
    """
    x = jax.ShapeDtypeStruct((1, *experiment.shape), "float32")
    return jax.eval_shape(lambda x: options.operator(experiment.shape)(x), x).shape[1:]


def read_input(experiment: Experiment, options: RestoreOptions) -> np.ndarray:
    """The examples (N, *shape) or, if `measured`, the measurements (N, *m) of `options.input`.

    Grey levels from images and whole numbers; real numbers are taken as scaled.

    Raises:
        DataError: the file cannot be used.
        ValueError: as `measured_shape`.
    """
    file = Path(options.input)
    shape = measured_shape(experiment, options) if options.measured else experiment.shape
    if file.suffix != ".npy":
        if not suits(shape, experiment.levels):
            raise DataError(f"{file}: expected a .npy file of shape {shape}, which no image file has.")
        return read_image(file, channels=shape[2], shape=shape)[None]
    try:
        x = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: expected a .npy array, got {str(error).splitlines()[0]}.") from error
    x = x[None] if x.shape == shape else x
    if x.shape[1:] != shape or not len(x):
        raise DataError(f"{file}: expected an array of shape {shape} or (N, *{shape}), got {x.shape}.")
    whole = np.issubdtype(x.dtype, np.integer)
    if not (whole or np.issubdtype(x.dtype, np.floating)) or not np.isfinite(x).all():
        raise DataError(f"{file}: expected finite numbers, got nan, inf or {x.dtype}.")
    levels = experiment.levels
    if whole and (levels is None or x.min() < 0 or x.max() >= levels):
        wanted = "real numbers" if levels is None else f"grey levels in 0..{levels - 1}"
        raise DataError(f"{file}: expected {wanted}, got {x.dtype} in {x.min()}..{x.max()}.")
    return x if whole else x.astype(np.float32)


def restore(
    experiment: Experiment,
    params: Any,
    how: SamplingOptions,
    options: RestoreOptions,
    x: np.ndarray,
    *,
    seed: int,
    progress: bool = False,
    guide: Any = None,
) -> Restored:
    """Posterior samples given the measurements of examples x, or given x themselves if `options.measured`.

    Example n is measured with noise from `fold_in(key, n)`, sample i in all from another key of its own.

    Args:
        x: (N, *shape) or (N, *m); grey levels (integers) or scaled data.
        guide: as in `generate`; the score of the prior is that of `how.guidance`.

    Raises:
        NonFiniteSamples: a sample is not finite.  The others are in its `found`; a batch without any ends the work.
    """
    operator, n = options.operator(experiment.shape), len(x)
    seeds = jax.random.split(jax.random.key(seed), 2)
    example_keys, keys = sample_keys(seeds[0], n), sample_keys(seeds[1], n * options.samples)
    truth, y = measure(experiment, options, operator, x, example_keys)
    task, weights = guide or (None, None)
    run, watched = _compiled(experiment, how, options, task)
    rows = np.repeat(np.arange(n), options.samples)
    total = len(rows)
    size = min(how.batch_size, -(-total // jax.device_count()) * jax.device_count())
    bar = Progress("sample", total) if progress else None
    found, nfes = [], []
    for first in range(0, total, size):
        take = np.arange(first, first + size) % total  # the surplus of the last is cut
        if bar and how.steps:
            watched.watch = within_batch(bar, first, how, total)
        samples, nfe = run((params, weights), keys[take], y[rows[take]])
        watched.watch = None
        found.append(np.asarray(samples))
        nfes.append(np.asarray(nfe))
        if bar:
            bar.update(min(first + size, total))
        if not np.isfinite(found[-1]).reshape(size, -1).all(axis=1).any():
            found.append(np.full((total, *experiment.shape), np.nan, found[0].dtype))  # those not tried
            break
    if bar:
        bar.close()
    samples = np.concatenate(found)[:total].reshape(n, options.samples, *experiment.shape)
    restored = Restored(truth, np.asarray(y), samples, float(np.mean(np.concatenate(nfes)[:total])))
    if not restored.finite.all():
        advice = "Take more sampling.steps, a larger restore.noise, another restore.method or sampling.sampler."
        raise NonFiniteSamples(f"{bad_ones(restored.finite.ravel())}. {advice}", restored)
    return restored


def keep_in_range(
    experiment: Experiment, how: SamplingOptions, observed: tuple[float, float] | None = None
) -> SamplingOptions:
    """`how` with the predicted data clipped, unless it transforms the score already: to the range of grey levels, or of
    real numbers to the range `observed`, if one is given.

    In much noise a network's predicted data lie far out of range, and its derivative with them: clipped, it is 0.
    """
    bounds = observed if experiment.levels is None else experiment.data_range
    if how.transform is not None or bounds is None:
        return how
    return replace(how, transform=partial(Clipped, low=bounds[0], high=bounds[1]))


def observed_range(source: Source, margin: float = 0.25) -> tuple[float, float]:
    """Lowest and highest number of up to 1,000 examples, with a margin on both sides, a share of the width."""
    found = describe(source)
    return found.low - margin * (found.high - found.low), found.high + margin * (found.high - found.low)


def measure(experiment: Experiment, options: RestoreOptions, operator: Operator, x: np.ndarray, keys: Any) -> tuple:
    """(truth or None, measurements) of examples, one key each; of given measurements their scaled values."""
    if options.measured:
        return None, _scaled(experiment, x)
    truth = experiment.scale(fold_in(keys, 0), jnp.asarray(x)) if np.issubdtype(x.dtype, np.integer) else jnp.asarray(x)
    y = operator(truth)
    return np.asarray(truth), operator.restrict(y + options.noise * normal(fold_in(keys, 1), y))


def _scaled(experiment: Experiment, x: np.ndarray) -> jax.Array:
    """Measured grey levels at the middle of their cells; real numbers as they are."""
    if not np.issubdtype(x.dtype, np.integer):
        return jnp.asarray(x)
    low, high = experiment.data_range
    return jnp.asarray(low + (high - low) * (x.astype(np.float32) + 0.5) / experiment.levels)


@lru_cache(maxsize=1)
def _compiled(experiment, how, options, task) -> tuple[Callable, Watched]:
    """`f(params, keys (B,), y (B, *m)) -> (x, nfe)` on all devices, and what it reports its steps to."""
    watched, operator, how = Watched(), options.operator(experiment.shape), keep_in_range(experiment, how)
    report = {} if how.steps is None else {"progress": watched}

    def run(params, keys, y):
        own, others = params
        score = how.guidance.score(experiment, own, (task, others))
        if how.transform is not None:
            score = how.transform(score, experiment.sde)
        shape = (keys.shape[0], *experiment.shape)
        return options.method.solve(how, keys, experiment.sde, score, operator, y, options.noise, shape, **report)

    return per_device(data_mesh(), run), watched


@dataclass(frozen=True)
class RestoreReport:
    """How good restored samples are; what needs the truth is None without it.

    psnr_of_mean, psnr_of_sample: of the mean of the samples, and of a sample, in dB below the data's range.
    spread: the standard deviation of the samples over the error of their mean, 1 where truth and samples are draws of
    one law: sqrt((1 + 1/S) mean variance / mean squared error).
    misfit: rms of y - A x over the noise's standard deviation, near 1 where the posterior is met.
    """

    psnr_of_mean: float | None
    psnr_of_sample: float | None
    spread: float | None
    misfit: float | None

    def table(self) -> str:
        """A line for each figure that there is."""
        rows = [("PSNR of the mean, dB", self.psnr_of_mean), ("PSNR of a sample, dB", self.psnr_of_sample)]
        rows += [("spread / error (1 if calibrated)", self.spread), ("misfit / noise", self.misfit)]
        return "\n".join(f"  {name:<36}{value:.4g}" for name, value in rows if value is not None)


def assess(experiment: Experiment, options: RestoreOptions, restored: Restored) -> RestoreReport:
    """The figures of `RestoreReport`."""
    operator, samples, truth = options.operator(experiment.shape), restored.samples, restored.truth
    flat = jnp.asarray(samples.reshape(-1, *experiment.shape))
    y = restored.measurements.repeat(samples.shape[1], axis=0)
    squares = np.square(y - np.asarray(operator.restrict(operator(flat)))).sum() / (len(y) * float(operator.rank))
    misfit = float(np.sqrt(squares) / options.noise) if options.noise > 0 else None
    if truth is None:
        return RestoreReport(None, None, None, misfit)
    count, mean = samples.shape[1], samples.mean(1)
    of_mean, of_sample = np.square(mean - truth).mean(), np.square(samples - truth[:, None]).mean()
    spread = float(np.sqrt((1 + 1 / count) * samples.var(1, ddof=1).mean() / of_mean)) if count > 1 else None
    peak = experiment.data_range[1] - experiment.data_range[0]
    return RestoreReport(*(float(10 * np.log10(peak**2 / error)) for error in (of_mean, of_sample)), spread, misfit)


def displayed(operator: Operator, y: np.ndarray) -> np.ndarray:
    """Measurements as images: y where it has the size of one, grey shown as colour; else A^+ y, the least that fits."""
    shape = operator.event
    if y.shape[1:-1] == shape[:-1] and y.shape[-1] in (1, shape[-1]):
        return np.broadcast_to(y, (len(y), *shape))
    u = conjugate_gradients(lambda u: operator(operator.adjoint(u)), jnp.asarray(y), 20)[0]
    return np.asarray(operator.adjoint(u))


def write_restored(
    experiment: Experiment, options: RestoreOptions, restored: Restored, stem: Path, made: Provenance
) -> list[Path]:
    """Write stem.json (figures), stem.npz (samples, measurements and truth) and, of images, stem.png.

    Where some samples are not finite there are no figures and no picture, and an array `finite` besides.
    """

    def stored(x: np.ndarray) -> np.ndarray:
        return experiment.unscale(jnp.asarray(x))

    def draw() -> bytes:
        examples, samples = SHOWN
        operator, first = options.operator(experiment.shape), restored.samples[:examples]
        y, truth = restored.measurements[:examples], restored.truth
        return restorations(
            stored(displayed(operator, y)),
            stored(first[:, :samples]),
            stored(first.mean(1)),
            first.std(1, ddof=1) if first.shape[1] > 1 else np.zeros_like(first[:, 0]),
            None if truth is None else stored(truth[:examples]),
            experiment.levels,
            made.what,
        )

    good, figures, pictures = restored.finite.all(), {"nfe": restored.nfe}, {}
    samples = np.where(np.isfinite(restored.samples) | (experiment.levels is None), restored.samples, 0)
    arrays = {"samples": stored(samples), "measurements": restored.measurements}
    if restored.truth is not None:
        arrays["truth"] = stored(restored.truth)
    if good:
        figures |= vars(assess(experiment, options, restored))
        if suits(experiment.shape, experiment.levels) and experiment.levels is not None:
            pictures[".png"] = draw
    else:
        arrays["finite"] = restored.finite
    return write_artefact(stem, made, figures=figures, arrays=arrays, pictures=pictures)
