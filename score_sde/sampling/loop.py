"""The one loop that runs every fixed-grid sampler, as a single compiled scan."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde import trees
from score_sde.arrays import fold_in, sample_keys
from score_sde.predictions import Score as ScorePrediction
from score_sde.sampling import grids
from score_sde.sampling.predictors import EulerMaruyama, Sampler
from score_sde.sampling.results import Samples, track_first_bad
from score_sde.sdes import AffineSDE, Score, check_time, evaluate
from score_sde.trees import Number, is_concrete

_PRIOR = 2**31 - 1  # folded into a sample's key for its starting point; steps fold in 0, 1, 2, ...


def sample(
    key: Array,
    sde: AffineSDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    sampler: Sampler = EulerMaruyama(),  # noqa: B008 - immutable
    steps: int = 1000,
    grid: grids.Grid | Array = grids.uniform,
    t_end: Number | None = None,
    x_init: Array | None = None,
    denoise: bool = False,
    trajectory: int | None = None,
) -> Samples:
    """Samples of the data from noise, by `steps` steps of `sampler` on a fixed grid of times.

    Sample i depends on its own key alone: it is the same in a batch of 1 and of 64, to rounding.  The solve is one
    compiled program; other keys, weights (a score as a pytree) and numbers do not compile again.

    Args:
        key: one key (sample i takes `fold_in(key, i)`), or an array of B keys.
        sde: the forward process that the score belongs to.
        score: `score(x, t)`, x (B, *event) and t (B,).
        shape: (B, *event).
        sampler: what a step does.
        steps: number of steps.
        grid: a function of `score_sde.grids`, or an array of falling times (`steps` and `t_end` are then not used).
        t_end: where to stop; the SDE's `t_sampling` unless given.
        x_init: (B, *event), start at the first time of the grid; drawn from the prior unless given.
        denoise: replace the result by its posterior mean given the score, E[x_0 | x] = (x + sigma^2 s)/alpha at t_end
            (Tweedie), one more evaluation.
        trajectory: how many states to keep on the way, evenly spaced (must divide `steps`), the start beside them.

    Returns:
        Samples(x, nfe, first_bad_step, trajectory).

    Raises:
        ValueError: steps < 1, a time outside the SDE's range, shapes that do not fit.
        TypeError: a score that returns another shape or dtype, at tracing.
        FloatingPointError: a sample stopped being finite (only outside of your own jit).

    >>> import jax, score_sde as ss
    >>> sde, target = ss.VP(), ss.Gaussian(mean=jax.numpy.ones(2), covariance=0.25)
    >>> out = ss.sample(jax.random.key(0), sde, target.score(sde), (500, 2), steps=200)
    >>> abs(float(out.x.mean()) - 1) < 0.1, int(out.nfe[0])
    (True, 200)
    """
    keys = sample_keys(key, shape[0])
    times = _times(sde, grid, steps, t_end)
    if trajectory is not None and (trajectory < 1 or (times.size - 1) % trajectory):
        raise ValueError(f"trajectory must divide the number of steps, {times.size - 1}, got {trajectory}.")
    if x_init is None:
        x_init = sde.prior_sample(fold_in(keys, _PRIOR), shape, times.dtype)
    elif x_init.shape != tuple(shape):
        raise ValueError(f"expected x_init of shape {tuple(shape)}, got {x_init.shape}.")
    return _solve(keys, sde, score, sampler, times.astype(x_init.dtype), x_init, denoise, trajectory).raise_if_bad()


def _times(sde: AffineSDE, grid: grids.Grid | Array, steps: int, t_end: Number | None) -> Array:
    if callable(grid):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}. Use 1000 for EulerMaruyama.")
        times = grid(sde, steps, sde.t_max, sde.t_sampling if t_end is None else t_end)
    else:
        times = jnp.asarray(grid)
        if times.ndim != 1 or times.size < 2:
            raise ValueError(f"expected a grid of at least two times in one axis, got shape {times.shape}.")
        if not jnp.issubdtype(times.dtype, jnp.floating):
            times = times.astype(jnp.result_type(float))
    if is_concrete(times):
        ends = np.asarray(times)
        check_time(sde, "the start of the grid", ends[0])
        check_time(sde, "t_end", ends[-1])
        if not np.all(np.diff(ends) < 0):
            raise ValueError("expected a grid of strictly falling times.")
    return times


@trees.jit
def _solve(keys, sde, score, sampler, times, x, denoise, trajectory):
    steps, batch = times.size - 1, x.shape[0]

    def step(carry, n):
        x, first_bad = carry
        t, t_next = (jnp.full((batch,), times[i]) for i in (n, n + 1))
        x = sampler.step(fold_in(keys, n), sde, score, x, t, t_next)
        return (x, track_first_bad(first_bad, x, n)), None

    def leg(carry, numbers):
        carry, _ = jax.lax.scan(step, carry, numbers)
        return carry, carry[0] if trajectory else None

    numbers = jnp.arange(steps).reshape(trajectory or 1, -1)
    (last, first_bad), states = jax.lax.scan(leg, (x, jnp.full((batch,), -1)), numbers)
    if trajectory:
        states = jnp.concatenate([x[None], states])
    nfe = steps * sampler.evaluations
    if denoise:
        t = jnp.full((batch,), times[-1])
        s = evaluate(score, last, t)
        last, nfe = ScorePrediction().data_and_noise(sde, s, last, t)[0], nfe + 1
        first_bad = track_first_bad(first_bad, last, steps)
    return Samples(last, jnp.full((batch,), nfe), first_bad, states)
