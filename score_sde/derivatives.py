"""Derivatives where those of the steps that compute a value would be wrong without a word.

JAX differentiates what a program does.  A branch that is skipped has no derivative, and neither has a draw by chance;
what a skipped branch would have said is not 0, and a gradient that leaves the draw out is not that of the mean.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


def cond(wanted: Array, full: Callable[[], Any], short: Callable[[], Any]) -> Any:
    """`lax.cond(wanted, full, short)` for a `short` that is a cheaper way to the same value, with `full`'s derivative.

    Where a setting is at its neutral value (a scale of 1, an eta of 0), `full` does not depend on some of its parts and
    `short` leaves them out; but the derivative in that setting does.  Under differentiation `full` runs everywhere.
    """
    full, numbers = _closed(full)
    short, others = _closed(short)

    @jax.custom_jvp
    def value(wanted, numbers, others):
        return jax.lax.cond(wanted, lambda: full(numbers), lambda: short(others))

    @value.defjvp
    def differentiate(primals, tangents):
        return jax.jvp(full, primals[1:2], tangents[1:2])

    return value(wanted, numbers, others)


def _closed(fn: Callable[[], Any]) -> tuple[Callable[[list], Any], list]:
    """`fn` as a function of what it closes over, and that: a custom_jvp sees its arguments alone."""
    jaxpr, out = jax.make_jaxpr(fn, return_shape=True)()
    tree = jax.tree.structure(out)
    return lambda values: jax.tree.unflatten(tree, jax.core.eval_jaxpr(jaxpr.jaxpr, values)), jaxpr.consts


def refuse(x: Any, why: str) -> Any:
    """x, whose derivative is refused with TypeError(why), at tracing."""

    @jax.custom_jvp
    def value(x):
        return x

    @value.defjvp
    def differentiate(primals, tangents):
        raise TypeError(why)

    return value(x)
