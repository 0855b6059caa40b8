"""Divergence of a field, exactly or from random probes, together with the field itself.

tr(J) = sum_i e_i' J e_i = E[v' J v] for any v with E[v v'] = I.  Both are Jacobian-vector products along a set of
probes v; each one `jax.jvp`, whose primal half is the field and is computed once.
"""

from abc import abstractmethod
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.trees import Frozen, static


class Divergence(Frozen):
    """A way to compute or estimate tr(df/dx) of a field f on single samples of shape `event`."""

    @abstractmethod
    def draw(self, key: Array, x: Array) -> Array:
        """Probes (K, *event), drawn once and kept for a whole solve (fresh ones at each t break adaptive solvers)."""
        raise TypeError(f"{type(self).__name__} must define draw")

    @abstractmethod
    def __call__(
        self, field: Callable[[Array], Array], x: Array, probes: Array
    ) -> tuple[Array, Float[Array, " estimates"]]:
        """field(x) and independent estimates of the divergence there."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    def standard_error(self, estimates: Float[Array, " estimates"]) -> Array:
        """Standard error of the mean of the estimates (or of sums over them); nan where it cannot be known."""
        k = estimates.shape[0]
        return jnp.std(estimates, ddof=1) / k**0.5 if k > 1 else jnp.full((), jnp.nan, estimates.dtype)


def _products(field, x, probes):
    """field(x) and v' J v for each probe v."""
    value, tangents = jax.vmap(lambda v: jax.jvp(field, (x,), (v,)), out_axes=(None, 0))(probes)
    return value, jnp.sum(probes * tangents, axis=tuple(range(1, probes.ndim)))


class Hutchinson(Divergence):
    """Hutchinson's estimator with `probes` random probes v of independent signs (Rademacher), or normal ones.

    Signs have the smaller variance: 2 sum over i != j of J_ij^2 per probe for symmetric J, none for a diagonal one.
    """

    probes: int = static(1)
    gaussian: bool = static(False)

    def check(self):
        if self.probes < 1:
            raise ValueError(f"Hutchinson: probes must be at least 1, got {self.probes}.")

    def draw(self, key, x):
        rule = jax.random.normal if self.gaussian else jax.random.rademacher
        return rule(key, (self.probes, *x.shape), x.dtype)

    def __call__(self, field, x, probes):
        return _products(field, x, probes)


class ExactDivergence(Divergence):
    """The exact trace: D Jacobian-vector products along the axes, `chunk` at a time.  For small D."""

    chunk: int = static(64)

    def check(self):
        if self.chunk < 1:
            raise ValueError(f"ExactDivergence: chunk must be at least 1, got {self.chunk}.")

    def draw(self, key, x):
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)

    def __call__(self, field, x, probes):
        if x.size <= self.chunk:
            value, products = _products(field, x, probes)
        else:
            value, along = jax.linearize(field, x)
            products = jax.lax.map(lambda v: jnp.vdot(v, along(v)), probes, batch_size=self.chunk)
        return value, jnp.sum(products)[None]

    def standard_error(self, estimates):
        return jnp.zeros((), estimates.dtype)
