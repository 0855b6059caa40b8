"""The probability flow as an adaptive solve: the diffrax call, its error norm, and the count of evaluations.

diffrax is imported inside, since it costs half a second that users of the rest need not pay.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from score_sde.sdes import AffineSDE
from score_sde.trees import Frozen, Number


class SolveStats(Frozen):
    """Of one solve: evaluations of the field, steps taken (rejected ones included), and whether it reached its end."""

    nfe: Array
    steps: Array
    converged: Array


def import_solvers() -> None:
    """Import diffrax before a function that uses it is traced: jax 0.12 compiles again what was traced meanwhile."""
    import diffrax  # noqa: F401


def check_precision(dtype: Any) -> None:
    """Raise ValueError for numbers coarser than float32: short steps of an adaptive solve would round to none."""
    if jnp.finfo(dtype).eps > jnp.finfo(jnp.float32).eps:
        raise ValueError(f"expected float32 or float64 for adaptive steps, got {dtype}. Use astype.")


def single_sample(field: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """A batched field (x (B, *event), t (B,)) as one of a single sample (x (*event), t ())."""
    return lambda x, t: field(x[None], t[None])[0]


def rms(x: Array) -> Array:
    """Root mean square: the error norm of a state."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def split_norm(parts: tuple[Array, Array]) -> Array:
    """max(rms of the state, largest log-density part): the tolerance then bounds the log-density too.

    In one root mean square over both, the log-density has 1/(D + 1) of the weight and is not controlled.
    """
    state, densities = parts
    return jnp.maximum(rms(state), jnp.max(jnp.abs(densities)))


def first_step(sde: AffineSDE, t0: Number, t1: Number, change: Number = 1.0) -> Array:
    """The step from t0 towards t1 in which the log-SNR changes by `change`: on its scale the flow of any SDE is smooth.

    A share of the interval can be too long where the noise sets in: VP's first thousandth holds 5 units of log-SNR,
    and on a learned score each solve then begins with five to eight rejected steps
    (`experiments/likelihood_speed.py`).  An exact score can bear them: there it takes a step or two more.
    """
    t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
    step = sde.inverse_log_snr(sde.log_snr(t0) - change * jnp.sign(t1 - t0)) - t0
    return jnp.sign(t1 - t0) * jnp.clip(jnp.abs(step), 1e-6 * jnp.abs(t1 - t0), jnp.abs(t1 - t0))


@lru_cache
def cash_karp() -> Any:
    """The Runge-Kutta pair of order 5(4) of Cash and Karp, for scores that are learned.

    A learned score is rough at the scale of a step, so its evaluations k_i carry errors that are as good as
    independent, and a step h sum b_i k_i has the variance h^2 sum b_i^2 of them.  At the same number of evaluations
    the variance of a solve goes with s sum b_i^2 for s stages: 1.8 for this pair, 4.5 for Dopri5, 108 for Tsit5,
    which is the better one where the score is smooth.

    Source: Cash & Karp, ACM Transactions on Mathematical Software 16 (1990), p. 201.
    """
    import diffrax

    b = np.array([37 / 378, 0, 250 / 621, 125 / 594, 0, 512 / 1771])
    embedded = np.array([2825 / 27648, 0, 18575 / 48384, 13525 / 55296, 277 / 14336, 1 / 4])

    class CashKarp(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            a_lower=(
                np.array([1 / 5]),
                np.array([3 / 40, 9 / 40]),
                np.array([3 / 10, -9 / 10, 6 / 5]),
                np.array([-11 / 54, 5 / 2, -70 / 27, 35 / 27]),
                np.array([1631 / 55296, 175 / 512, 575 / 13824, 44275 / 110592, 253 / 4096]),
            ),
            b_sol=b,
            b_error=b - embedded,
            c=np.array([1 / 5, 3 / 10, 3 / 5, 1, 7 / 8]),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 5

    return CashKarp()


def solve(
    field: Callable[[Array, Any], Any],
    y0: Any,
    t0: Number,
    t1: Number,
    *,
    rtol: Number,
    atol: Number,
    norm: Callable[[Any], Array],
    step: Number | None = None,
    solver: Any = None,
    max_steps: int = 4096,
    growth: Number = 10.0,
) -> tuple[Any, SolveStats]:
    """y(t1) of dy/dt = field(t, y), y(t0) = y0 (any pytree), with adaptive steps; map it over samples for their own.

    A step is accepted where norm(error / (atol + rtol |y|)) <= 1.  `step` is the first one, a thousandth of the
    interval unless given (see `first_step`).  `solver` is any explicit solver of diffrax with an embedded error
    estimate, Tsit5 unless given.  A step is at most `growth` times the one before it: of an error so small that more
    would be allowed, rounding may be the larger part.  Nothing is raised: the statistics say whether the end was
    reached.
    """
    import diffrax

    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):  # the count below holds for these
        raise ValueError(
            f"expected an explicit Runge-Kutta solver of diffrax with an error estimate, got {type(solver).__name__}. "
            "Use Tsit5, Dopri5, Dopri8, Bosh3 or cash_karp()."
        )
    dtype = jax.tree.leaves(y0)[0].dtype
    t0, t1, rtol, atol = (jnp.asarray(v, dtype) for v in (t0, t1, rtol, atol))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        solver,
        t0,
        t1,
        jnp.asarray(1e-3 * (t1 - t0) if step is None else step, dtype),  # diffrax takes 0.01, whatever the interval
        y0,
        stepsize_controller=diffrax.PIDController(rtol, atol, norm=norm, factormax=growth),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=max_steps,
        throw=False,
    )
    steps = solution.stats["num_steps"]
    stages = solver.tableau.num_stages
    # First-same-as-last pairs reuse their last stage: one evaluation less per step, and one at the start.
    nfe = steps * (stages - 1) + 1 if solver.tableau.fsal else steps * stages
    converged = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda y: y[0], solution.ys), SolveStats(nfe, steps, converged)
