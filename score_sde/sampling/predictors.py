"""One-step solvers of the reverse SDE."""

from abc import abstractmethod

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from score_sde.arrays import expand, normal
from score_sde.sdes import AffineSDE, Score
from score_sde.trees import Frozen, static


class Sampler(Frozen):
    """A rule that takes samples from time t to an earlier t_next.

    `evaluations` is the number of calls of the score per step.
    """

    evaluations: int = static(1)

    @abstractmethod
    def step(
        self,
        keys: Key[Array, " b"],
        sde: AffineSDE,
        score: Score,
        x: Float[Array, "b ..."],
        t: Float[Array, " b"],
        t_next: Float[Array, " b"],
    ) -> Float[Array, "b ..."]:
        """x at t_next from x at t; `keys` are fresh at each step, one per sample."""
        raise TypeError(f"{type(self).__name__} must define step")


class EulerMaruyama(Sampler):
    """Euler-Maruyama on the reverse SDE: x <- x + (a x - g^2 s) dt + g sqrt(|dt|) z.

    Strong and weak order 1 (the noise is additive).  Takes hundreds of steps; a safe baseline for every SDE.
    """

    def step(self, keys, sde, score, x, t, t_next):
        dt = t_next - t
        mean = x + expand(dt, x) * sde.reverse_drift(score, x, t)
        return mean + expand(sde.diffusion(t) * jnp.sqrt(-dt), x) * normal(keys, x)
