"""Sampling by solvers of diffrax: the probability flow, and the reverse SDE along a Brownian path of each sample's own.

diffrax is imported inside, since it costs half a second that users of the rest need not pay.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde import trees
from score_sde.arguments import checked
from score_sde.arrays import fold_in, of_sample, sample_keys
from score_sde.flow import check_precision, first_step, import_solvers, rms, single_sample, solve
from score_sde.sampling import grids
from score_sde.sampling.loop import PRIOR, check_shape, denoised, make_times, start_from_prior
from score_sde.sampling.results import Samples
from score_sde.sdes import AffineSDE, Score, check_falling, check_score, check_time
from score_sde.trees import Number, is_concrete


@checked
def sample_adaptive(
    key: Array,
    sde: AffineSDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    rtol: Number = 1e-4,
    atol: Number = 1e-4,
    t_start: Number | None = None,
    t_end: Number | None = None,
    x_init: Float[Array, "b ..."] | None = None,
    temperature: Number = 1.0,
    denoise: bool = False,
    solver: Any = None,
    max_steps: int = 4096,
) -> Samples:
    """Samples by solving the probability flow dx/dt = a x - g^2 s/2 from noise to data, step sizes chosen per sample.

    No other sample's value enters a sample's step sizes.  In another batch its evaluations are rounded otherwise, which
    in float32 decides of a step now and then: such a sample is the same to the tolerance, near the boundary of two
    modes to a hundred times of it, and not to rounding (figures: `experiments/batch_invariance.py`).

    Arguments as in `sample`; `solver` is any explicit solver of diffrax with an error estimate (Tsit5 unless given),
    `rtol` and `atol` bound the local error of each sample in root mean square.  With `x_init` and t_start < t_end it
    solves from data to noise (see `encode_adaptive`).

    Returns:
        Samples(x, nfe, first_bad_step, None); `first_bad_step` is the number of steps after which a solve gave up.

    Raises: as `sample`; ValueError for tolerances that cannot be, for an `x_init` coarser than float32, and without
        `x_init` for times that do not fall; FloatingPointError also where a solve needs more than `max_steps` steps.
    """
    t_start = sde.t_max if t_start is None else t_start
    t_end = sde.t_sampling if t_end is None else t_end
    check_time(sde, "t_start", t_start)
    check_time(sde, "t_end", t_end)
    check_shape(x_init, shape)
    if x_init is None:
        check_falling(t_start, t_end)
    else:
        check_precision(x_init.dtype)
    check_score(score, shape, None if x_init is None else x_init.dtype)
    import_solvers()
    return _solve_flow(
        key, tuple(shape), sde, score, x_init, temperature, denoise, t_start, t_end, rtol, atol, solver, max_steps
    ).raise_if_bad()


@trees.jit
def _solve_flow(key, shape, sde, score, x, temperature, denoise, t_start, t_end, rtol, atol, solver, max_steps):
    if x is None:
        x = start_from_prior(sde, sample_keys(key, shape[0]), shape, t_start, temperature)
    # Near the prior the flow all but stands still and its error estimates are rounding, which must not set the steps.
    step = first_step(sde, jnp.asarray(t_start, x.dtype), jnp.asarray(t_end, x.dtype), change=3.0)

    def one(x, i):
        own = of_sample(score, i)
        velocity = single_sample(lambda x, t: sde.flow_drift(own, x, t))
        x, stats = solve(
            lambda t, x: velocity(x, t), x, t_start, t_end,
            rtol=rtol, atol=atol, norm=rms, step=step, solver=solver, max_steps=max_steps, growth=2.0,
        )  # fmt: skip
        good = stats.converged & jnp.all(jnp.isfinite(x))
        return x, stats.nfe, jnp.where(good, -1, stats.steps), stats.steps

    x, nfe, first_bad, steps = jax.vmap(one)(x, jnp.arange(shape[0]))
    out = Samples(x, nfe, first_bad)
    return denoised(sde, score, out, jnp.asarray(t_end, x.dtype), steps) if denoise else out


@checked
def sample_sde(
    key: Array,
    sde: AffineSDE,
    score: Score,
    shape: tuple[int, ...],
    *,
    solver: Any = None,
    steps: int | None = None,
    grid: grids.Grid | Array = grids.uniform,
    rtol: Number = 1e-2,
    atol: Number = 1e-2,
    t_start: Number | None = None,
    t_end: Number | None = None,
    x_init: Float[Array, "b ..."] | None = None,
    temperature: Number = 1.0,
    denoise: bool = False,
    resolution: Number = 2.0**-14,
    max_steps: int = 4096,
) -> Samples:
    """Samples by solving the reverse SDE dx = (a x - g^2 s) dt + g dw along a fixed Brownian path per sample.

    The path is a function of the sample's key alone, so solves with other steps, tolerances or solvers approximate the
    same x: their difference is their error.  The noise is additive, which diffrax has solvers of strong order 1.5 for.

    On a fixed grid a sample is the same in every batch, to rounding.  Adaptive steps are not: a path is rough, so a
    rounded step sees other noise and the difference grows from step to step.  In another batch most samples take other
    steps, agree to the error of the solve alone, and near the boundary of two modes can end in different ones.

    Args: as in `sample`, and
        solver: a stochastic Runge-Kutta solver for additive noise of diffrax (ShARK unless given; SRA1, SEA), or
            `diffrax.Euler()`, which is EulerMaruyama.
        steps, grid: a fixed grid, one solver step per step of it.  Without `steps` (and with no array as grid) step
            sizes are chosen per sample such that the local error keeps to `rtol` and `atol` in root mean square; the
            solver needs an error estimate then (ShARK and SRA1 have one).
        resolution: length of the shortest piece that a path is resolved to, as a fraction of t_start - t_end.  Steps
            below it are refused, or not taken.  A path costs log2(1/resolution) normal draws per step.

    Returns:
        Samples(x, nfe, first_bad_step, None); `first_bad_step` is the number of steps after which a solve gave up.

    Raises: as `sample_adaptive`.
    """
    check_shape(x_init, shape)
    check_score(score, shape, None if x_init is None else x_init.dtype)
    t_start = sde.t_max if t_start is None else t_start
    t_end = sde.t_sampling if t_end is None else t_end
    times = None
    if steps is not None or not callable(grid):
        times = make_times(sde, grid, steps or 0, t_start, t_end, None if x_init is None else x_init.dtype)
        t_start, t_end = times[0], times[-1]
        if is_concrete((times, resolution)):
            shortest, least = float(-np.diff(np.asarray(times)).max()), float(resolution * (t_start - t_end))
            if shortest < least:
                raise ValueError(
                    f"the shortest step, {shortest:.3g}, is below the resolution of the Brownian path, {least:.3g}. "
                    f"Use resolution={shortest / float(t_start - t_end):.2g}, or a coarser grid."
                )
    else:
        check_time(sde, "t_start", t_start)
        check_time(sde, "t_end", t_end)
        check_falling(t_start, t_end)
        if x_init is not None:
            check_precision(x_init.dtype)
    import_solvers()
    return _solve_sde(
        key, tuple(shape), sde, score, x_init, temperature, denoise, t_start, t_end, times, rtol, atol, solver,
        resolution, max_steps,
    ).raise_if_bad()  # fmt: skip


@trees.jit
def _solve_sde(
    key, shape, sde, score, x, temperature, denoise, t_start, t_end, times, rtol, atol, solver, resolution, max_steps
):  # fmt: skip
    import diffrax
    import lineax

    solver = diffrax.ShARK() if solver is None else solver
    additive = isinstance(solver, diffrax.AbstractSRK) and solver.tableau.is_additive_noise()
    if not (additive or isinstance(solver, diffrax.Euler)):
        raise ValueError(
            f"expected a solver of diffrax for additive noise, got {type(solver).__name__}. "
            "Use ShARK, SRA1, SEA or Euler."
        )
    stages = len(solver.tableau.b_sol) if additive else 1
    keys = sample_keys(key, shape[0])
    if x is None:
        x = start_from_prior(sde, keys, shape, t_start, temperature)
    start, length = (jnp.asarray(t, x.dtype) for t in (t_start, t_start - t_end))

    # In reversed time r = t_start - t, from 0 on: a Brownian tree wants its interval to rise.
    def one(key, x, i):
        own = of_sample(score, i)
        drift = single_sample(lambda x, t: sde.reverse_drift(own, x, t))

        def field(r, y, _):
            return -drift(y.reshape(x.shape), start - r).ravel()

        def spread(r, y, _):
            return lineax.DiagonalLinearOperator(jnp.full(y.shape, temperature * sde.diffusion(start - r), y.dtype))

        path = diffrax.VirtualBrownianTree(
            jnp.zeros_like(length), length, resolution * length, jax.ShapeDtypeStruct((x.size,), x.dtype), key,
            levy_area=diffrax.SpaceTimeLevyArea,  # for every solver: another kind would be another path
        )  # fmt: skip
        if times is None:
            # PI control: the error of an SDE solver is too rough for the memoryless rule.
            control = diffrax.PIDController(rtol, atol, norm=rms, pcoeff=0.1, icoeff=0.3, dtmin=resolution * length)
            first, most = 0.01 * length, max_steps
        else:
            control, first, most = diffrax.StepTo(start - times), None, times.size
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(field), diffrax.ControlTerm(spread, path)), solver,
            jnp.zeros_like(length), length, first, x.ravel(),
            stepsize_controller=control, saveat=diffrax.SaveAt(t1=True), max_steps=most, throw=False,
        )  # fmt: skip
        end, taken = solution.ys[0].reshape(x.shape), solution.stats["num_steps"]
        good = (solution.result == diffrax.RESULTS.successful) & jnp.all(jnp.isfinite(end))
        return end, taken * stages, jnp.where(good, -1, taken), taken

    # The path must not share draws with the starting point.
    x, nfe, first_bad, taken = jax.vmap(one)(fold_in(keys, PRIOR - 1), x, jnp.arange(shape[0]))
    out = Samples(x, nfe, first_bad)
    return denoised(sde, score, out, jnp.asarray(t_end, x.dtype), taken) if denoise else out
