"""The probability flow as an adaptive solve: the diffrax call, its error norm, and the count of evaluations.

diffrax is imported inside, since it costs half a second that users of the rest need not pay.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from score_sde.trees import Frozen, Number


class SolveStats(Frozen):
    """Of one solve: evaluations of the field, steps taken (rejected ones included), and whether it reached its end."""

    nfe: Array
    steps: Array
    converged: Array


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


def solve(
    field: Callable[[Array, Any], Any],
    y0: Any,
    t0: Number,
    t1: Number,
    *,
    rtol: Number,
    atol: Number,
    norm: Callable[[Any], Array],
    solver: Any = None,
    max_steps: int = 4096,
) -> tuple[Any, SolveStats]:
    """y(t1) of dy/dt = field(t, y), y(t0) = y0 (any pytree), with adaptive steps; map it over samples for their own.

    A step is accepted where norm(error / (atol + rtol |y|)) <= 1.  `solver` is any explicit solver of diffrax with an
    embedded error estimate, Tsit5 unless given.  Nothing is raised: the statistics say whether the end was reached.
    """
    import diffrax

    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK):  # the count below holds for these
        raise ValueError(
            f"expected an explicit Runge-Kutta solver of diffrax with an error estimate, got {type(solver).__name__}. "
            "Use Tsit5, Dopri5, Dopri8 or Bosh3."
        )
    dtype = jax.tree.leaves(y0)[0].dtype
    t0, t1, rtol, atol = (jnp.asarray(v, dtype) for v in (t0, t1, rtol, atol))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        solver,
        t0,
        t1,
        1e-3 * (t1 - t0),  # explicit: diffrax takes 0.01, whatever the interval, when it is asked to choose
        y0,
        stepsize_controller=diffrax.PIDController(rtol, atol, norm=norm),
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
