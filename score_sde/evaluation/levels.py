"""What each noise level costs: the training loss and the variational bound, per bin of equal width in log-SNR.

Every example gets one noise level and one noise in every bin, from its own key, so the values of a bin are independent
and their spread is an honest standard error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.arrays import mean_event
from score_sde.evaluation.examples import examples_of
from score_sde.likelihood import bound_by_noise_level
from score_sde.objectives import denoising_score_matching
from score_sde.objectives.times import TimeSampler
from score_sde.objectives.weightings import SigmaSquared
from score_sde.training.experiment import Classification, Experiment, Task
from score_sde.training.mesh import data_mesh, per_device

_DATA, _LEVELS = 0, 3  # folded into an example's key; `evaluation.likelihood` draws from others, and the same data


@dataclass(frozen=True)
class ByLevel:
    """Means over `examples` in each bin, and their standard errors.  The bins have equal widths in log-SNR.

    log_snr: (bins,), the middles.  values, errors: name -> (bins,).  settings: which examples, bins and seed.
    """

    log_snr: np.ndarray
    values: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    examples: int
    settings: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it under one name each, for a file."""
        errors = {f"{name}_standard_error": v for name, v in self.errors.items()}
        return {"log_snr": self.log_snr, **self.values, **errors}


class _At(TimeSampler):
    """The one time t."""

    t: Any

    def __call__(self, key, sde, n):
        return jnp.full(n, self.t)


def loss_by_level(
    experiment: Experiment, params: Any, *, split: str, batch_size: int, seed: int, examples: int = 256, bins: int = 24
) -> ByLevel:
    """The denoising loss of each noise level, on `examples` of a split (`evaluation.examples`).

    values: `loss`, with the training's weighting; `noise` and `data`, the relative errors
    sqrt(E|eps_hat - eps|^2 / E|eps|^2) and sqrt(E|x_hat - x_0|^2 / E|x_0|^2) of the predicted noise and data, of which
    0 predicts with an error of 1, whatever the weighting.
    """
    sde = experiment.sde
    starts, width = _bins(experiment, bins)

    def one(params, key, example):
        x = example["x"]
        network = experiment.score(params).predict
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(bins))

        def at(inputs):
            key, start = inputs
            key_time, key_noise = jax.random.split(key)
            log_snr = start + width * jax.random.uniform(key_time, (1,))
            t = jnp.clip(sde.inverse_log_snr(log_snr), sde.t_min, sde.t_max)
            noise = denoising_score_matching(
                key_noise, sde, network, x, prediction=experiment.prediction, weighting=SigmaSquared(), times=_At(t[0])
            )
            ratio = jnp.square(sde.sigma(t))
            loss = experiment.weighting(sde, experiment.prediction, t) / ratio * noise
            return {"loss": loss[0], "noise": noise[0], "data": (noise * ratio / jnp.square(sde.alpha(t)))[0]}

        return jax.lax.map(at, (keys, starts)) | {"size": jnp.broadcast_to(mean_event(jnp.square(x)), (bins,))}

    found, settings = _per_example(experiment, params, one, split, examples, batch_size, seed)
    found["data"] /= found.pop("size").mean()
    values, errors = {k: v.mean(axis=0) for k, v in found.items()}, {k: _standard_error(v) for k, v in found.items()}
    for name in ("noise", "data"):
        values[name] = np.sqrt(values[name])
        errors[name] /= 2 * np.maximum(values[name], 1e-30)  # of a root, to first order
    return ByLevel(starts + 0.5 * width, values, errors, len(found["loss"]), settings | {"bins": bins})


def bound_by_level(
    experiment: Experiment, params: Any, *, split: str, batch_size: int, seed: int, examples: int, bins: int = 24
) -> ByLevel:
    """What each bin of log-SNR adds to the variational bound per dimension, in bits (nats for continuous data).

    values: `bound`, which is `likelihood.bound_by_noise_level` of each example; the sum over bins is the bound's
    diffusion part, without the prior's and the reconstruction's.
    """
    starts, width = _bins(experiment, bins)
    unit = int(np.prod(experiment.shape)) * (1.0 if experiment.levels is None else np.log(2))

    def one(params, key, example):
        x = example["x"]
        return {"bound": bound_by_noise_level(key, experiment.sde, experiment.score(params), x, bins=bins)[1] / unit}

    found, settings = _per_example(experiment, params, one, split, examples, batch_size, seed)
    values, errors = {"bound": found["bound"].mean(axis=0)}, {"bound": _standard_error(found["bound"])}
    return ByLevel(starts + 0.5 * width, values, errors, len(found["bound"]), settings | {"bins": bins})


def accuracy_by_level(
    experiment: Classification, params: Any, *, split: str, batch_size: int, seed: int, examples: int | None = None,
    bins: int = 24,
) -> ByLevel:  # fmt: skip
    """How well the classes are told at each noise level, on `examples` of a split, or all.

    values: `accuracy`, the share of examples whose likeliest class is their own; `loss`, the cross-entropy in nats.
    """
    sde = experiment.sde
    starts, width = _bins(experiment, bins)

    def one(params, key, example):
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(bins))

        def at(inputs):
            key, start = inputs
            key_time, key_noise = jax.random.split(key)
            log_snr = start + width * jax.random.uniform(key_time, (1,))
            t = jnp.clip(sde.inverse_log_snr(log_snr), sde.t_min, sde.t_max)
            x = sde.perturb(example["x"], jax.random.normal(key_noise, example["x"].shape), t)
            log_prob, label = experiment.log_prob(params)(x, t)[0], example["label"][0]
            return {"accuracy": jnp.argmax(log_prob) == label, "loss": -log_prob[label]}

        return jax.lax.map(at, (keys, starts))

    found, settings = _per_example(experiment, params, one, split, examples, batch_size, seed)
    values, errors = {k: v.mean(axis=0) for k, v in found.items()}, {k: _standard_error(v) for k, v in found.items()}
    return ByLevel(starts + 0.5 * width, values, errors, len(found["loss"]), settings | {"bins": bins})


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; nan where there is one value."""
    n = len(values)
    return values.std(axis=0, ddof=1) / n**0.5 if n > 1 else np.full(values.shape[1:], np.nan)


def _bins(experiment: Task, bins: int) -> tuple[np.ndarray, float]:
    """Where the bins of log-SNR start, rising, and their width."""
    sde = experiment.sde
    low, high = np.asarray(sde.log_snr(jnp.array([sde.t_max, sde.t_min], jnp.float32)))
    width = float(high - low) / bins
    return low + width * np.arange(bins, dtype=np.float32), width


def _per_example(
    experiment: Task, params: Any, one: Callable[[Any, Array, dict], dict[str, Array]],
    split: str, examples: int | None, batch_size: int, seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:  # fmt: skip
    """`one(params, key, example)` of each of some examples, stacked, and which they are; example: {"x": (1, *shape),
    ...} as the network sees it."""

    def batch(params, keys, examples):
        def of(key, example):
            example = {k: v[None] for k, v in example.items()}
            example["x"] = experiment.scale(jax.random.fold_in(key, _DATA)[None], example["x"])
            return one(params, jax.random.fold_in(key, _LEVELS), example)

        return jax.vmap(of)(keys, examples)

    run, chosen = per_device(data_mesh(), batch), examples_of(experiment, split, examples)
    keys_of = jax.jit(jax.vmap(partial(jax.random.fold_in, jax.random.key(seed))))
    devices = jax.device_count()
    size, parts = min(batch_size, -(-len(chosen) // devices) * devices), []
    for batch_of, rows, valid in chosen.batches(size):
        found = run(params, keys_of(jnp.asarray(rows)), batch_of)
        parts.append({k: np.asarray(v, np.float64)[valid] for k, v in found.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, chosen.settings() | {"seed": seed}
