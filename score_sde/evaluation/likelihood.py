"""Test log-likelihood of a trained model: bits/dim of grey levels, nats/dim of continuous data, with their errors."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import in_order
from score_sde.files import write_arrays, write_json
from score_sde.likelihood import Divergence, bits_per_dim, log_prob
from score_sde.training.experiment import Experiment
from score_sde.training.mesh import data_mesh, per_device
from score_sde.training.progress import Progress

_DATA, _PROBES = 0, 1  # folded into an example's key for its dequantisation and its probes


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate the likelihood; `num_examples` None means the whole split."""

    split: str
    batch_size: int
    num_examples: int | None
    divergence: Divergence
    rtol: float
    atol: float


@dataclass(frozen=True)
class LikelihoodReport:
    """Test likelihood: `value` +- `standard_error` (over examples) in `unit`, and what it took."""

    value: float
    standard_error: float
    unit: str
    split: str
    examples: int
    not_converged: int
    nfe_mean: float
    nfe_max: int
    images_per_second: float  # after compilation
    step: int

    def line(self) -> str:
        """For a person."""
        text = (
            f"{self.split} {self.value:.3f} +- {self.standard_error:.3f} {self.unit} ({self.examples} examples, "
            f"NFE {self.nfe_mean:.0f} on average, {self.nfe_max} at most, {self.images_per_second:.1f} examples/s)"
        )
        return text + (f"; {self.not_converged} did not converge and are left out" if self.not_converged else "")


def evaluate_likelihood(
    experiment: Experiment, params: Any, options: EvalOptions, *, step: int, seed: int
) -> tuple[LikelihoodReport, dict[str, np.ndarray]]:
    """The report, and the per-example arrays `value`, `nfe`, `converged`, in the order of the split.

    Example i has the dequantisation noise and the probes of fold_in(key(seed), i), whatever the batch size.
    """
    levels, data_range = experiment.levels, experiment.data_range
    size = int(np.prod(experiment.shape))

    def run(params, keys, x):
        data_keys, probe_keys = (jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(keys) for n in (_DATA, _PROBES))
        lp = log_prob(
            probe_keys,
            experiment.sde,
            experiment.score(params),
            experiment.scale(data_keys, x),
            divergence=options.divergence,
            rtol=options.rtol,
            atol=options.atol,
        )
        if levels is None:
            value = -lp.nats / size
        else:
            value = bits_per_dim(lp, levels=levels, data_range=data_range).value
        return value, lp.nfe, lp.converged

    compiled = per_device(data_mesh(), run)
    key = jax.random.key(seed)
    keys_of = jax.jit(jax.vmap(lambda i: jax.random.fold_in(key, i)))
    source = experiment.load(options.split)
    total = min(len(source), options.num_examples or len(source))
    unit = "nats/dim" if levels is None else "bits/dim"
    progress = Progress(f"{options.split} likelihood", total)
    parts, done, timed, began = [], 0, 0, time.monotonic()
    for batch, indices, valid in in_order(source, options.batch_size):
        valid = valid & (indices < total)
        if not valid.any():
            break
        results = compiled(params, keys_of(jnp.asarray(indices)), batch["x"])
        value, nfe, converged = (np.asarray(result)[valid] for result in results)
        parts.append((value, nfe, converged))
        if done:
            timed += len(value)
        else:
            began, first_batch = time.monotonic(), time.monotonic() - began  # the first batch compiled
        done += len(value)
        values = np.concatenate([p[0] for p in parts])
        progress.update(done, f"{np.nanmean(values) if np.isfinite(values).any() else np.nan:.3f} {unit}")
    progress.close()
    seconds = time.monotonic() - began if timed else first_batch
    value, nfe, converged = (np.concatenate(a) for a in zip(*parts, strict=True))
    good = value[converged]
    report = LikelihoodReport(
        value=float(good.mean()) if good.size else float("nan"),
        standard_error=float(good.std(ddof=1) / good.size**0.5) if good.size > 1 else float("nan"),
        unit=unit,
        split=options.split,
        examples=int(good.size),
        not_converged=int((~converged).sum()),
        nfe_mean=float(nfe.mean()),
        nfe_max=int(nfe.max()),
        images_per_second=round((timed or done) / seconds, 2),
        step=step,
    )
    return report, {"value": value, "nfe": nfe, "converged": converged}


def write_likelihood(report: LikelihoodReport, arrays: dict[str, np.ndarray], stem: Path) -> list[Path]:
    """Write stem.json (the report) and stem.npz (per example)."""
    written = [stem.with_suffix(".json"), stem.with_suffix(".npz")]
    write_json(written[0], vars(report))
    write_arrays(written[1], **arrays)
    return written
