"""Test log-likelihood of a trained model: by the probability flow and by a variational bound, with all their errors."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import discrete
from score_sde.arrays import fold_in
from score_sde.data.identity import fingerprint
from score_sde.evaluation.artefacts import write_artefact
from score_sde.evaluation.examples import Examples, examples_of
from score_sde.evaluation.partial import Partial
from score_sde.evaluation.provenance import Origin, Provenance, described, weights_digest
from score_sde.flow import first_step
from score_sde.likelihood import (
    Divergence,
    ExactDivergence,
    bits_per_dim,
    continuous_bound,
    discrete_bound,
    log_prob,
    prior_kl,
)
from score_sde.plots import histogram
from score_sde.sampling import sample_adaptive
from score_sde.training.experiment import Experiment
from score_sde.training.mesh import data_mesh, per_device
from score_sde.training.progress import Progress

_EXACT_IS_QUICK = 256  # dimensions in which nobody waits for an exact divergence
_QUIET = 0.1  # nats; exponentiated, louder probes would make importance weighting too good
_DATA, _PROBES, _BOUND, _PASS = 0, 1, 2, 3  # folded into an example's key for its draws, and for the passes after one


class EvaluationError(ValueError):
    """An evaluation that makes no sense, in one line."""


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate.

    num_examples: None means the whole split.  passes: how often each example is evaluated, with fresh dequantisation
    and probes.  bound: "continuous", "discrete" or "none"; bound_draws: its noise levels, for the discrete one the
    length of the chain.  round_trip: how many of the examples are carried to their latents and back.  solver: makes the
    solver for `log_prob`.
    """

    split: str
    batch_size: int
    num_examples: int | None
    divergence: Divergence
    rtol: float
    atol: float
    passes: int = 1
    bound: str = "none"
    bound_draws: int = 50
    round_trip: int = 0
    whole_batch: bool = False
    solver: Callable[[], Any] | None = None


@dataclass(frozen=True)
class LikelihoodReport:
    """What was found.  All values are in `unit`, standard errors are over examples unless they say otherwise."""

    value: float
    standard_error: float
    unit: str
    split: str
    examples: int
    passes: int
    not_converged: list[int]  # which examples
    spread_examples: float  # standard deviation from example to example ...
    spread_draws: float  # ... and of one example from pass to pass: dequantisation and probes; nan for a single pass
    probe_error_max: float  # in nats: what decides on importance weighting
    probe_error: float  # root mean square of the examples' standard errors over their probes; nan for a single probe
    importance_weighted: float  # bits/dim of the passes' mean density; nan for one pass, and where probes are too noisy
    importance_weighted_standard_error: float
    bound: float  # of the reverse SDE or the chain; nan where not asked for
    bound_standard_error: float
    prior_kl: float  # mean KL(q(x_T | x_0) || prior), which bounds KL(p_T || prior); never added to anything
    latent_norm: float  # mean |z|^2 over its expectation under the prior: 1
    round_trip: float  # root mean square of x - decode(encode(x)); nan where not asked for
    nfe_mean: float
    nfe_max: int
    images_per_second: float  # after compilation
    step: int

    def line(self) -> str:
        """For a person, in short."""
        text = (
            f"{self.split} {self.value:.3f} +- {self.standard_error:.3f} {self.unit} ({self.examples} examples, "
            f"NFE {self.nfe_mean:.0f} on average, {self.nfe_max} at most, {self.images_per_second:.1f} examples/s)"
        )
        if self.not_converged:
            some = ", ".join(map(str, self.not_converged[:8])) + (" ..." if len(self.not_converged) > 8 else "")
            text += f"; {len(self.not_converged)} did not converge and are left out (examples {some})"
        return text

    def table(self) -> str:
        """For a person, line by line."""
        rows = [
            ("probability flow", f"{self.value:.4f} +- {self.standard_error:.4f} {self.unit}"),
            ("  from example to example", f"{self.spread_examples:.4f}"),
            ("  from pass to pass", f"{self.spread_draws:.4f}  ({self.passes} passes)"),
            ("  standard error over probes", f"{self.probe_error:.4f}"),
            ("importance-weighted passes", self._importance_weighted()),
            ("variational bound", f"{self.bound:.4f} +- {self.bound_standard_error:.4f} {self.unit}"),
            ("prior mismatch, at most", f"{self.prior_kl:.2g} {self.unit}"),
            ("latent |z|^2 over its expectation", f"{self.latent_norm:.3f}"),
            ("round trip x -> z -> x, rms", f"{self.round_trip:.2g}"),
        ]
        return "\n".join(f"  {name:<36}{text}" for name, text in rows if "nan" not in text.split()[0])

    def _importance_weighted(self) -> str:
        if np.isnan(self.importance_weighted) and self.passes > 1 and self.unit == "bits/dim":
            return f"refused: probes deviate by up to {self.probe_error_max:.2g} nats (exact, or below {_QUIET})"
        return f"{self.importance_weighted:.4f} +- {self.importance_weighted_standard_error:.4f} {self.unit}"


def evaluate_likelihood(
    experiment: Experiment, params: Any, options: EvalOptions, *, step: int, seed: int, partial_file: Path | None = None
) -> tuple[LikelihoodReport, dict[str, np.ndarray]]:
    """The report, and the per-example arrays it is made of, in the order of the split, passes along the second axis.

    Example i has the dequantisation noise and the probes of fold_in(key(seed), i), whatever the batch size.  With
    `partial_file` what is done is kept there, and taken up when the same evaluation is asked for; delete it when the
    report is written.

    Raises:
        DataError: the split is empty.
        EvaluationError: an exact divergence that would take hours.
    """
    run = per_device(data_mesh(), partial(_batch, experiment, options))
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    chosen = examples_of(experiment, options.split, options.num_examples)
    total = len(chosen)
    unit = "nats/dim" if experiment.levels is None else "bits/dim"
    origin = Origin("", step=step, weights=weights_digest(params))
    unfinished = Partial(partial_file, provenance_of(experiment, options, origin, seed=seed).decisive())
    parts = unfinished.resume()
    kept = sum(len(p["value"]) for p in parts)
    progress = Progress(f"{options.split} likelihood", total * options.passes, kept)
    done, timed, began, first_batch = kept, 0, time.monotonic(), None
    for number in range(options.passes):
        for batch, indices, valid in chosen.batches(options.batch_size):
            if kept > 0:
                kept -= int(valid.sum())
                continue
            _refuse_hours(experiment, params, options, total)
            keys = keys_of(jnp.asarray(indices))
            keys = keys if number == 0 else fold_in(keys, _PASS + number)
            found = {k: np.asarray(v)[valid] for k, v in run(params, keys, batch["x"]).items()}
            parts.append(found | {"index": indices[valid], "number": np.full(int(valid.sum()), number)})
            if first_batch is None:
                began, first_batch = time.monotonic(), time.monotonic() - began  # the first batch compiled
            else:
                timed += int(valid.sum())
            done += int(valid.sum())
            unfinished.keep(parts)
            values = np.concatenate([p["value"] for p in parts])
            progress.update(done, f"{np.nanmean(values) if np.isfinite(values).any() else np.nan:.3f} {unit}")
    progress.close()
    seconds = time.monotonic() - began if timed else first_batch or np.nan
    arrays = {k: np.concatenate([p[k] for p in parts]).reshape(options.passes, total).T for k in parts[0]}
    if options.passes == 1:
        arrays = {k: v[:, 0] for k, v in arrays.items()}
    del arrays["number"]
    round_trip = _round_trip(experiment, params, options, chosen, keys_of)
    report = _report(arrays, options, int(np.prod(experiment.shape)), unit, step, (timed or done) / seconds, round_trip)
    return report, arrays


def _batch(experiment: Experiment, options: EvalOptions, params: Any, keys: jax.Array, x: jax.Array) -> dict:
    """All that is known of each example of a batch after one pass."""
    sde, score, levels = experiment.sde, experiment.score(params), experiment.levels
    size = int(np.prod(experiment.shape))
    x = experiment.scale(fold_in(keys, _DATA), x)
    lp = log_prob(
        fold_in(keys, _PROBES), sde, score, x,
        divergence=options.divergence, rtol=options.rtol, atol=options.atol, whole_batch=options.whole_batch,
        solver=options.solver and options.solver(), first_step=first_step(sde, sde.t_min, sde.t_max),
    )  # fmt: skip

    def in_unit(result):
        if levels is None:
            return -result.nats / size, result.standard_error / size
        bits = bits_per_dim(result, levels=levels, data_range=experiment.data_range)
        return bits.value, bits.standard_error

    value, probe_error = in_unit(lp)
    unit = size if levels is None else size * np.log(2)
    found = {"value": value, "probe_error": probe_error, "nfe": lp.nfe, "converged": lp.converged}
    found["prior_kl"] = prior_kl(sde, x) / unit
    found["latent_norm"] = jnp.mean(jnp.square(lp.latent.reshape(len(x), -1)), axis=1) / sde.prior_std(x.dtype) ** 2
    if options.bound == "continuous":
        found["bound"] = in_unit(continuous_bound(fold_in(keys, _BOUND), sde, score, x, draws=options.bound_draws))[0]
    elif options.bound == "discrete":
        chain = discrete.of_sde(sde, options.bound_draws)
        found["bound"] = in_unit(discrete_bound(fold_in(keys, _BOUND), sde, score, x, chain=chain))[0]
    return found


def _round_trip(experiment, params, options, chosen: Examples, keys_of) -> float:
    """Root mean square of x - decode(encode(x)) over some of the examples."""
    count = min(options.round_trip, len(chosen))
    if count == 0:
        return float("nan")
    sde = experiment.sde

    @jax.jit
    def trip(params, keys, x):
        score, x = experiment.score(params), experiment.scale(fold_in(keys, _DATA), x)
        solve = partial(sample_adaptive, keys, sde, score, x.shape, rtol=options.rtol, atol=options.atol)
        latent = solve(x_init=x, t_start=sde.t_min, t_end=sde.t_max).x
        return jnp.sqrt(jnp.mean(jnp.square(solve(x_init=latent, t_start=sde.t_max, t_end=sde.t_min).x - x)))

    batch, indices, _ = next(examples_of(experiment, options.split, count).batches(count))
    return float(trip(params, keys_of(jnp.asarray(indices)), jnp.asarray(batch["x"])))


def _refuse_hours(experiment, params, options, total, *, limit: float = 3600.0) -> None:
    """Raise EvaluationError where an exact divergence takes more than `limit` seconds, from one product's time."""
    size = int(np.prod(experiment.shape))
    if not isinstance(options.divergence, ExactDivergence) or size <= _EXACT_IS_QUICK:
        return
    state, t = jnp.zeros((1, *experiment.shape)), jnp.full((1,), experiment.sde.t_max)
    product = jax.jit(lambda p, v: jax.jvp(lambda x: experiment.score(p)(x, t), (state,), (v,))[1])
    product(params, state).block_until_ready()
    began = time.monotonic()
    product(params, state).block_until_ready()
    seconds = (time.monotonic() - began) * size * 100 * total * options.passes
    if seconds > limit:
        raise EvaluationError(
            f"an exact divergence in {size} dimensions takes some {seconds / 3600:.3g} hours here ({size} products for "
            f"each of some 100 evaluations of {total} examples). Use eval.divergence=hutchinson, or eval.num_examples."
        )


def _report(arrays, options, size, unit, step, speed, round_trip) -> LikelihoodReport:
    per_pass = {k: v.reshape(len(v), -1) for k, v in arrays.items()}
    good = per_pass["converged"].all(axis=1)
    kept = {k: v[good] for k, v in per_pass.items()}
    value, standard_error, between, within = spreads(kept["value"])
    bound, bound_error, _, _ = spreads(kept["bound"]) if "bound" in kept else [float("nan")] * 4

    probe_error_max = size * np.log(2) * float(kept["probe_error"].max(initial=0.0))  # nan: a single probe
    weighted, weighted_error = [float("nan")] * 2
    if options.passes > 1 and unit == "bits/dim" and probe_error_max < _QUIET:
        draws = -size * kept["value"].astype(np.float64)  # log2 of their densities, but for the offset
        best = draws.max(axis=1, keepdims=True)
        weighted, weighted_error, _, _ = spreads(-(best + np.log2(np.exp2(draws - best).mean(1, keepdims=True))) / size)

    def mean(name: str, power: float = 1.0) -> float:
        return float(np.mean(kept[name] ** power) ** (1 / power)) if kept[name].size else float("nan")

    return LikelihoodReport(
        value=value, standard_error=standard_error, unit=unit, split=options.split, examples=int(good.sum()),
        passes=options.passes, not_converged=[int(i) for i in per_pass["index"][~good, 0]], spread_examples=between,
        spread_draws=within, probe_error=mean("probe_error", 2.0), probe_error_max=probe_error_max,
        importance_weighted=weighted, importance_weighted_standard_error=weighted_error,
        bound=bound, bound_standard_error=bound_error,
        prior_kl=mean("prior_kl"), latent_norm=mean("latent_norm"), round_trip=round_trip,
        nfe_mean=float(per_pass["nfe"].mean()), nfe_max=int(per_pass["nfe"].max()),
        images_per_second=round(speed, 2), step=step,
    )  # fmt: skip


def spreads(values: np.ndarray) -> tuple[float, float, float, float]:
    """Of values (examples, passes): mean, its standard error, and the standard deviations between and within examples.

    Analysis of variance: the variance of the examples' means holds the variance within over the number of passes.  The
    standard error is over examples; nan where there is too little to know one.
    """
    n, passes = values.shape
    if n == 0:
        return (float("nan"),) * 4
    means = values.mean(axis=1)
    variance = means.var(ddof=1) if n > 1 else np.nan
    within = values.var(axis=1, ddof=1).mean() if passes > 1 else np.nan
    between = np.maximum(variance - (within / passes if passes > 1 else 0), 0)
    return tuple(float(v) for v in (means.mean(), np.sqrt(variance / n), np.sqrt(between), np.sqrt(within)))


def provenance_of(experiment: Experiment, options: EvalOptions, origin: Origin, *, seed: int) -> Provenance:
    """What makes an evaluation: its settings and examples, with the weights of `origin`.

    Raises:
        DataError: the split is empty.
    """
    chosen = examples_of(experiment, options.split, options.num_examples)
    how = {k: v for k, v in described(options).items() if k not in ("name", "split", "num_examples")}
    settings = {"examples": chosen.settings(), **how, "seed": seed, "sde": experiment.sde}
    settings |= {"levels": experiment.levels, "data_range": experiment.data_range}
    what = f"likelihood of {len(chosen)} of {chosen.of} {options.split} examples"
    return Provenance("likelihood", what, origin, described(settings), fingerprint(chosen.source))


def write_likelihood(
    report: LikelihoodReport, arrays: dict[str, np.ndarray], stem: Path, made: Provenance
) -> list[Path]:
    """Write stem.json (the report), stem.npz (per example) and stem.png (their histogram)."""
    values = arrays["value"][np.isfinite(arrays["value"])].ravel()
    value = f"{report.value:.3f} +- {report.standard_error:.3f} {report.unit}"
    made = replace(made, what=f"{value}, {report.examples} {report.split} examples")
    return write_artefact(
        stem, made, figures=vars(report), arrays=arrays, timings=("images_per_second",),
        pictures={".png": partial(histogram, values, report.unit)},
    )  # fmt: skip
