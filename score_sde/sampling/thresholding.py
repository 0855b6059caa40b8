"""Scores whose predicted data are kept in range.

Far from the data a network's prediction E[x_0 | x_t] = (x + sigma^2 s)/alpha may lie outside of the range of the data;
one step later the sampler is where no training was.  Both transforms below are scores again, so they go with every
sampler and with the adaptive solvers.  They change the law that is sampled, and its flow is no longer the model's.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.arrays import expand
from score_sde.sampling.sampler import check_range
from score_sde.sdes import AffineSDE, Score, evaluate
from score_sde.trees import Frozen, Number


class _Bounded(Frozen):
    """s + alpha (bounded(D) - D)/sigma^2: the score whose predicted data are bounded(D)."""

    score: Score
    sde: AffineSDE

    def check(self):
        if not np.all(np.asarray(self.low) < np.asarray(self.high)):
            raise ValueError(f"{type(self).__name__}: low must be below high, got {self.low} and {self.high}.")

    def bounded(self, data: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        raise TypeError(f"{type(self).__name__} must define bounded")

    def __call__(self, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
        alpha, variance = (expand(v, x) for v in (self.sde.alpha(t), jnp.square(self.sde.sigma(t))))
        s = evaluate(self.score, x, t)
        data = (x + variance * s) / alpha
        return s + alpha / variance * (self.bounded(data) - data)  # exactly s where nothing is cut off


class Clipped(_Bounded):
    """A score with its predicted data clipped to [low, high], as in the published DDPM samplers (Ho et al. 2020)."""

    low: Number = -1.0
    high: Number = 1.0

    def bounded(self, data):
        return jnp.clip(data, self.low, self.high)


class DynamicThreshold(_Bounded):
    """A score with dynamic thresholding of its predicted data (Saharia et al. 2022, Imagen, section 2.3).

    In units where data span [-1, 1] about their middle: with q the `quantile` of a sample's |D|, but at least 1, D is
    clipped to [-q, q] and divided by q.
    """

    low: Number = -1.0
    high: Number = 1.0
    quantile: Number = 0.995

    def check(self):
        super().check()
        check_range(self, "quantile", 0, 1)

    def bounded(self, data):
        middle, half = 0.5 * (self.high + self.low), 0.5 * (self.high - self.low)
        unit = (data - middle) / half
        q = jnp.quantile(jnp.abs(unit).reshape(unit.shape[0], -1), self.quantile, axis=1).astype(unit.dtype)
        q = expand(jnp.maximum(q, 1), unit)
        kept = (q == 1) & (jnp.abs(unit) <= 1)  # to the last bit
        return jnp.where(kept, data, middle + half * jnp.clip(unit, -q, q) / q)
