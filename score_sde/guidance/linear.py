"""Linear systems M u = b, one for each sample, by conjugate gradients; and the derivatives of their solutions.

The steps themselves must not be differentiated: they end when b is spent, which may be in fewer directions than those
in which b can change.  The derivative is that of the solution, du = M^-1 (db - dM u), a system of its own, solved to
rounding.  It holds where u is a solution: where too few steps were taken to halve the digits of the residual, a
relative one of sqrt(eps), the derivative is nan.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from score_sde.arrays import expand, sum_event

State = Float[Array, "b ..."]


def solve(matvec: Callable[[State], State], b: State, iterations: int, *, symmetric: bool = True) -> State:
    """u of M u = b by at most `iterations` steps; its derivative is the solution's, nan for a sample not solved.

    `symmetric`: whether M is by construction; otherwise reverse mode solves with the transpose.
    """
    # The steps as a function of all that they depend on, so that nothing of them is differentiated.
    take, numbers = jax.closure_convert(lambda b: conjugate_gradients(matvec, b, iterations), b)
    u, solved = take(*jax.lax.stop_gradient((b, *numbers)))

    def residual(u):
        return _known_where(solved, matvec(u) - b)

    def to_rounding(matvec, b):
        u, solved = conjugate_gradients(matvec, b, 10 * b[0].size + 100)
        return _known_where(solved, u)

    def differentiate(linear, b):
        return jax.lax.custom_linear_solve(linear, b, to_rounding, to_rounding, symmetric=symmetric)

    return jax.lax.custom_root(residual, u, lambda _, u: u, differentiate)


def _known_where(solved: Bool[Array, " b"], x: State) -> State:
    return x * expand(jnp.where(solved, 1, jnp.nan).astype(x.dtype), x)


def conjugate_gradients(matvec: Callable[[State], State], b: State, iterations: int) -> tuple[State, Bool[Array, " b"]]:
    """(u, solved): M^-1 b of each sample, M symmetric and positive semi-definite, by at most `iterations` steps.

    A sample stops where its residual is rounding, or where M shows that it is not positive.  `solved` says whether at
    least half of the digits are there.
    """

    def dot(a, c):
        return sum_event(a * c)

    eps, rr = jnp.finfo(b.dtype).eps, dot(b, b)
    rounding, half = jnp.square(4 * eps) * rr, eps * rr

    def unfinished(carry):
        return (carry[0] < iterations) & jnp.any(carry[-1])

    def step(carry):
        k, u, r, p, rr, going = carry
        q = matvec(p)
        curvature = dot(p, q)
        going = going & (curvature > 0)
        length = jnp.where(going, rr / jnp.where(going, curvature, 1), 0)
        u, r = u + expand(length, b) * p, r - expand(length, b) * q
        smaller = dot(r, r)
        turn = jnp.where(going, smaller / jnp.where(going, rr, 1), 0)
        return k + 1, u, r, r + expand(turn, b) * p, smaller, going & (smaller > rounding)

    start = (jnp.zeros((), int), jnp.zeros_like(b), b, b, rr, rr > rounding)
    _, u, _, _, rr, _ = jax.lax.while_loop(unfinished, step, start)
    return u, rr <= half
