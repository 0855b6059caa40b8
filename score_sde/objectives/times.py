"""How training times are drawn: `times(key, sde, n)` gives n times in [sde.t_min, sde.t_max]."""

from abc import abstractmethod

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_sde.sdes import AffineSDE
from score_sde.trees import Frozen, Number


class TimeSampler(Frozen):
    """A law of training times."""

    @abstractmethod
    def __call__(self, key: Array, sde: AffineSDE, n: int) -> Float[Array, " n"]:
        """n times."""
        raise TypeError(f"{type(self).__name__} must define __call__(key, sde, n)")


def _between(sde: AffineSDE, u: Array) -> Array:
    return sde.t_min + u * (sde.t_max - sde.t_min)


class Uniform(TimeSampler):
    """Independent and uniform on [t_min, t_max] (the published choice)."""

    def __call__(self, key, sde, n):
        return _between(sde, jax.random.uniform(key, (n,)))


class Stratified(TimeSampler):
    """One time in each of n equal strata, shifted together (Kingma et al. 2021, appendix I.1).

    Each time is uniform on [t_min, t_max]; the batch covers the range evenly, which lowers the variance of the loss.
    """

    def __call__(self, key, sde, n):
        return _between(sde, (jnp.arange(n) / n + jax.random.uniform(key)) % 1)


class LogSNR(TimeSampler):
    """Uniform in log-SNR, one time in each of n equal strata: the law whose density is proportional to g^2/sigma^2.

    g^2/sigma^2 = -d log-SNR/dt for every AffineSDE, so with the weighting SigmaSquared this is likelihood training (the
    weighting g^2) with importance-sampled times, of far lower variance than Likelihood with Uniform (Song et al. 2021b,
    section 5.1; Kingma et al. 2021).
    """

    def __call__(self, key, sde, n):
        ends = sde.log_snr(jnp.stack([jnp.asarray(t, jnp.result_type(float)) for t in (sde.t_max, sde.t_min)]))
        u = jnp.arange(n) / n + jax.random.uniform(key) / n
        return jnp.clip(sde.inverse_log_snr(ends[0] + (ends[1] - ends[0]) * u), sde.t_min, sde.t_max)


class LogNormal(TimeSampler):
    """log(sigma/alpha) ~ N(mean, std^2), clipped to the SDE's range (Karras et al. 2022, table 1)."""

    mean: Number = -1.2
    std: Number = 1.2

    def check(self):
        if not self.std > 0:
            raise ValueError(f"times.LogNormal: std must be positive, got {self.std}.")

    def __call__(self, key, sde, n):
        log_ratio = self.mean + self.std * jax.random.normal(key, (n,))
        return jnp.clip(sde.inverse_log_snr(-2 * log_ratio), sde.t_min, sde.t_max)


class LogitNormal(TimeSampler):
    """logit(u) ~ N(mean, std^2) for t = t_min + u (t_max - t_min) (Esser et al. 2024, section 3.1)."""

    mean: Number = 0.0
    std: Number = 1.0

    def check(self):
        if not self.std > 0:
            raise ValueError(f"times.LogitNormal: std must be positive, got {self.std}.")

    def __call__(self, key, sde, n):
        return _between(sde, jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (n,))))
