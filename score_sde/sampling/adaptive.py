"""Sampling by the probability flow with an adaptive solver."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde import trees
from score_sde.arrays import fold_in, sample_keys
from score_sde.flow import rms, single_sample, solve
from score_sde.sampling.loop import _PRIOR
from score_sde.sampling.results import Samples
from score_sde.sdes import AffineSDE, Score, check_time
from score_sde.trees import Number


def sample_adaptive(
    key: Array,
    sde: AffineSDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    rtol: Number = 1e-4,
    atol: Number = 1e-4,
    t_end: Number | None = None,
    x_init: Array | None = None,
    solver: Any = None,
    max_steps: int = 4096,
) -> Samples:
    """Samples by solving the probability flow dx/dt = a x - g^2 s/2 from noise to data, step sizes chosen per sample.

    No other sample's value enters a sample's step sizes.  Arguments as in `sample`; `solver` is any explicit solver of
    diffrax with an error estimate (Tsit5 unless given), `rtol` and `atol` bound the local error of each sample in root
    mean square.

    Returns:
        Samples(x, nfe, first_bad_step, None); `first_bad_step` is the number of steps after which a solve gave up.

    Raises: as `sample`; FloatingPointError also where a solve needs more than `max_steps` steps.
    """
    keys = sample_keys(key, shape[0])
    t_end = sde.t_sampling if t_end is None else t_end
    check_time(sde, "t_end", t_end)
    if x_init is None:
        x_init = sde.prior_sample(fold_in(keys, _PRIOR), shape)
    elif x_init.shape != tuple(shape):
        raise ValueError(f"expected x_init of shape {tuple(shape)}, got {x_init.shape}.")
    return _solve(sde, score, x_init, t_end, rtol, atol, solver, max_steps).raise_if_bad()


@trees.jit
def _solve(sde, score, x, t_end, rtol, atol, solver, max_steps):
    velocity = single_sample(lambda x, t: sde.flow_drift(score, x, t))

    def one(x):
        x, stats = solve(
            lambda t, x: velocity(x, t), x, sde.t_max, t_end,
            rtol=rtol, atol=atol, norm=rms, solver=solver, max_steps=max_steps,
        )  # fmt: skip
        good = stats.converged & jnp.all(jnp.isfinite(x))
        return x, stats.nfe, jnp.where(good, -1, stats.steps)

    return Samples(*jax.vmap(one)(x))
