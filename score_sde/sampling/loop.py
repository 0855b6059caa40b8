"""The one loop that runs every fixed-grid sampler, as a single compiled scan."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde import trees
from score_sde.arguments import checked
from score_sde.arrays import fold_in, normal, sample_keys
from score_sde.predictions import Score as ScorePrediction
from score_sde.sampling import grids
from score_sde.sampling.predictors import EulerMaruyama
from score_sde.sampling.results import Samples, track_first_bad
from score_sde.sampling.sampler import Sampler
from score_sde.sdes import AffineSDE, Score, check_score, check_time, evaluate
from score_sde.trees import Number, is_concrete

PRIOR = 2**31 - 1  # folded into a sample's key for its starting point; rows fold in 0, 1, 2, ...


@checked
def sample(
    key: Array,
    sde: AffineSDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    sampler: Sampler = EulerMaruyama(),  # noqa: B008 - immutable
    steps: int = 1000,
    grid: grids.Grid | Array = grids.uniform,
    t_start: Number | None = None,
    t_end: Number | None = None,
    x_init: Float[Array, "b ..."] | None = None,
    temperature: Number = 1.0,
    denoise: bool = False,
    trajectory: int | None = None,
    progress: Callable[[int], None] | None = None,
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
        grid: a function of `score_sde.grids`, or an array of falling times (`steps`, `t_start` and `t_end` are then not
            used).
        t_start: where to start; the SDE's `t_max` unless given.
        t_end: where to stop; the SDE's `t_sampling` unless given.
        x_init: (B, *event), the state at t_start; drawn from the prior N(0, sigma(t_start)^2) unless given.
        temperature: factor of the standard deviation of all noise drawn, the starting point's included.
        denoise: replace the result by its posterior mean given the score, E[x_0 | x] = (x + sigma^2 s)/alpha at t_end
            (Tweedie), one more evaluation.
        trajectory: how many states to keep on the way, evenly spaced in steps, the start beside them.
        progress: called on the host with the number of steps done, some 50 times.

    Returns:
        Samples(x, nfe, first_bad_step, trajectory).

    Raises:
        ValueError: steps < 1, a time outside the SDE's range, shapes that do not fit, a temperature below 0.
        TypeError: an argument of another kind; a score that returns another shape or dtype, at tracing.
        FloatingPointError: a sample stopped being finite (only outside of your own jit).

    >>> import jax, score_sde as ss
    >>> sde, target = ss.VP(), ss.Gaussian(mean=jax.numpy.ones(2), covariance=0.25)
    >>> out = ss.sample(jax.random.key(0), sde, target.score(sde), (500, 2), steps=200)
    >>> abs(float(out.x.mean()) - 1) < 0.1, int(out.nfe[0])
    (True, 200)
    >>> out = ss.sample(jax.random.key(0), sde, target.score(sde), (500, 2), sampler=ss.DPMSolverPP(order=2), steps=15,
    ...                 grid=ss.grids.log_snr)
    >>> abs(float(out.x.std()) - 0.5) < 0.05, int(out.nfe[0])
    (True, 15)
    """
    dtype = None if x_init is None else x_init.dtype
    check_shape(x_init, shape)
    check_score(score, shape, dtype)
    times = make_times(sde, grid, steps, t_start, sde.t_sampling if t_end is None else t_end, dtype)
    if trajectory is not None and not 1 <= trajectory <= times.size - 1:
        raise ValueError(f"trajectory must be in 1..{times.size - 1}, the number of steps; got {trajectory}.")
    jax.eval_shape(lambda key: sample_keys(key, shape[0]), key)  # refuses a bad key before anything compiles
    return _solve(
        key, tuple(shape), sde, score, sampler, times, x_init, temperature, denoise, trajectory, progress
    ).raise_if_bad()


def denoised(sde: AffineSDE, score: Score, out: Samples, t: Array, step: Array | int) -> Samples:
    """`out` with x replaced by the posterior mean of the data at time t (a scalar); `step` numbers this evaluation."""
    t = jnp.full(out.x.shape[:1], t)
    x = ScorePrediction().data_and_noise(sde, evaluate(score, out.x, t), out.x, t)[0]
    return Samples(x, out.nfe + 1, track_first_bad(out.first_bad_step, x, step), out.trajectory)


def solve_from(sde: AffineSDE, score: Score, x: Array, sampler: Sampler, times: Array) -> Samples:
    """The state at the end of any monotonic `times` from x at their start, without noise."""
    return _solve(jax.random.key(0), x.shape, sde, score, sampler, times, x, 0.0, False, None, None).raise_if_bad()


def check_shape(x_init: Array | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a start, if one is given, of another shape."""
    if x_init is not None and x_init.shape != tuple(shape):
        raise ValueError(f"expected x_init of shape {tuple(shape)}, got {x_init.shape}.")


def start_from_prior(sde: AffineSDE, keys: Array, shape: tuple[int, ...], t: Number, temperature: Number) -> Array:
    """Draws of N(0, (temperature sigma(t))^2), sample i from key i."""
    x = jnp.zeros(shape, jnp.result_type(float))
    return jnp.asarray(temperature, x.dtype) * sde.sigma(jnp.asarray(t, x.dtype)) * normal(fold_in(keys, PRIOR), x)


_evaluate_grid = trees.jit(lambda grid, sde, steps, t_start, t_end: grid(sde, steps, t_start, t_end))


def make_times(
    sde: AffineSDE,
    grid: grids.Grid | Array,
    steps: int,
    t_start: Number | None,
    t_end: Number | None,
    dtype: Any = None,
) -> Array:
    """The times of a solve from t_start to t_end (t_max where None), checked as far as they are concrete.

    Raises:
        ValueError: no steps, times outside the SDE's range or not strictly monotonic.
    """
    t_start, t_end = (sde.t_max if t is None else t for t in (t_start, t_end))
    if callable(grid):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}. Use 1000 for EulerMaruyama.")
        check_time(sde, "t_start", t_start)
        check_time(sde, "t_end", t_end)
        times = _evaluate_grid(grid, sde, steps, *(jnp.asarray(t, jnp.result_type(float)) for t in (t_start, t_end)))
    else:
        times = jnp.asarray(grid)
        if times.ndim != 1 or times.size < 2:
            raise ValueError(f"expected a grid of at least two times in one axis, got shape {times.shape}.")
        if not jnp.issubdtype(times.dtype, jnp.floating):
            times = times.astype(jnp.result_type(float))
    times = times if dtype is None else times.astype(dtype)
    if is_concrete(times):
        check_grid(sde, np.asarray(times))
    return times


def check_grid(sde: AffineSDE, times: np.ndarray) -> None:
    """Raise ValueError where times, as rounded to their dtype, leave the SDE's range or do not fall strictly."""
    exact, coarse = times.astype(float), jnp.finfo(times.dtype).eps > jnp.finfo(jnp.float32).eps
    remedy = f" Times are rounded to {times.dtype} like x_init: use float32." if coarse else ""
    for name, t in (("the start of the grid", exact[0]), ("t_end", exact[-1])):
        check_time(sde, name, t, remedy)
    wrong = np.flatnonzero(~(np.diff(exact) < 0))
    if wrong.size:
        i = wrong[0]
        if exact[i] == exact[i + 1]:
            remedy = remedy or " Take fewer steps, or another grid: rounding makes these equal."
        pair = f"{exact[i]:.9g} and then {exact[i + 1]:.9g} at step {i}"
        raise ValueError(f"expected a grid of strictly falling times, got {pair}.{remedy}")


@trees.jit
def _solve(key, shape, sde, score, sampler, times, x, temperature, denoise, trajectory, progress):
    keys, temperature = sample_keys(key, shape[0]), jnp.asarray(temperature, times.dtype)

    def draw(row, k, like):
        row_keys = fold_in(keys, row)
        return temperature * normal(row_keys if isinstance(k, int) and k == 0 else fold_in(row_keys, k), like)

    if x is None:
        x = start_from_prior(sde, keys, shape, times[0], temperature)
    x, nfe, first_bad, states = march(sde, score, sampler, times, x, draw, trajectory, progress)
    out = Samples(x, jnp.full(x.shape[:1], nfe), first_bad, states)
    if not denoise:
        return out
    out = denoised(sde, score, out, times[-1], times.size - 1)
    return dataclasses.replace(out, x=sampler.finish(out.x))


def march(
    sde: AffineSDE,
    score: Score,
    sampler: Sampler,
    times: Array,
    x: Array,
    draw: Callable[[Array, int | Array, Array], Array],
    trajectory: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Array, int, Array, Array | None]:
    """(x at the last time, evaluations, first bad step, states kept): a sampler's plan, row after row.

    `draw(row, k, like)` is the k-th standard normal array that the row with this number draws.
    """
    plan = sampler.plan(sde, times)
    steps, ends = times.size - 1, np.asarray(plan.last)
    numbers = np.arange(ends.size)
    # Where a state goes in the trajectory: past its end, where it is dropped, unless it is one of those asked for.
    kept, slots = None, np.full(ends.size, (trajectory or 0) + 1)
    if trajectory:
        kept = jnp.zeros((trajectory + 1, *x.shape), x.dtype).at[0].set(x)
        marks = np.round(np.linspace(0, steps, trajectory + 1)).astype(int)
        slots[ends] = np.array([list(marks).index(n) if n in marks else trajectory + 1 for n in range(1, steps + 1)])
    every = max(steps // 50, 1)

    def advance(carry, inputs):
        x, memory, first_bad, kept = carry
        n, slot, row = inputs
        x, memory = sampler.advance(sde, score, x, memory, row, partial(draw, n, like=x))
        first_bad = track_first_bad(first_bad, x, row.step)
        if trajectory:
            kept = kept.at[slot].set(x, mode="drop")
        if progress is not None:
            done = row.step + 1
            tick = row.last & ((done % every == 0) | (done == steps))
            jax.lax.cond(tick, lambda: jax.debug.callback(progress, done), lambda: None)
        return (x, memory, first_bad, kept), None

    start = (x, sampler.start(x, plan), jnp.full(x.shape[:1], -1), kept)
    (x, _, first_bad, kept), _ = jax.lax.scan(advance, start, (numbers, slots, plan))
    return x, sampler.evaluations(plan), first_bad, kept
