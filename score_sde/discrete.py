"""Discrete-time chains: the forward process at T noise levels, its Markov kernels and posteriors, in closed form.

Level i = 1..T has x_i = alpha_i x_0 + sigma_i eps.  The kernel from i - 1 to i is N(m_i x_{i-1}, v_i),

    m_i = alpha_i/alpha_{i-1},    v_i = sigma_i^2 - m_i^2 sigma_{i-1}^2        (alpha_0 = 1, sigma_0 = 0)

and, given the data, the step back is Gaussian too (Ho et al. 2020, eqs. 6 and 7, for any alpha and sigma):

    q(x_{i-1} | x_i, x_0) = N(a_i x_i + c_i x_0, w_i),
    a_i = m_i sigma_{i-1}^2/sigma_i^2,    c_i = alpha_{i-1} v_i/sigma_i^2,    w_i = v_i sigma_{i-1}^2/sigma_i^2.

A generative chain replaces x_0 by a prediction D(x_i) and w_i by a variance of its choice: w_i itself ("posterior",
right for data in one point), v_i ("forward", DDPM's beta_i, right for data N(0, I)), or the best one,
w_i + c_i^2 E|x_0 - D|^2/d.

Arrays below have T entries; entry i - 1 belongs to level i.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.sdes import AffineSDE
from score_sde.trees import Frozen, Number, is_concrete

Levels = Float[Array, " t"]


class Chain(Frozen):
    """A chain of T noise levels: `alpha` and `sigma` (T,), from the data's end to the prior's.

    >>> import jax.numpy as jnp, score_sde as ss
    >>> chain = ss.discrete.ddpm(1000)
    >>> chain.alpha.shape, round(float(chain.variance_forward[0]), 6)  # beta_1 = 0.1/1000
    ((1000,), 0.0001)
    """

    alpha: Levels
    sigma: Levels

    def check(self):
        alpha, sigma = np.asarray(self.alpha), np.asarray(self.sigma)
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not alpha.size:
            raise ValueError(f"Chain: expected alpha and sigma of one shape (T,), got {alpha.shape} and {sigma.shape}.")
        if not (np.all(alpha > 0) and np.all(sigma > 0)):
            raise ValueError("Chain: alpha and sigma must be positive.")
        if not np.all(np.diff(sigma / alpha) > 0):
            raise ValueError("Chain: sigma/alpha must rise from level to level.")

    @property
    def steps(self) -> int:
        """T."""
        return self.alpha.shape[0]

    @property
    def _before(self) -> tuple[Levels, Levels]:
        """alpha and sigma of the level before each."""
        one = jnp.ones_like(self.alpha[:1])
        return jnp.concatenate([one, self.alpha[:-1]]), jnp.concatenate([0 * one, self.sigma[:-1]])

    @property
    def kernel_mean(self) -> Levels:
        """m_i."""
        return self.alpha / self._before[0]

    @property
    def _shrinkage(self) -> Levels:
        """v_i/sigma_i^2 = 1 - (rho_{i-1}/rho_i)^2, rho = sigma/alpha; as a product, since the square cancels."""
        alpha, sigma = self._before
        rho, before = self.sigma / self.alpha, sigma / alpha
        return (rho - before) * (rho + before) / rho**2

    @property
    def variance_forward(self) -> Levels:
        """v_i: DDPM's beta_i."""
        return self.sigma**2 * self._shrinkage

    @property
    def variance_posterior(self) -> Levels:
        """w_i: DDPM's beta-tilde; 0 at level 1."""
        return self._before[1] ** 2 * self._shrinkage

    @property
    def posterior_noisy(self) -> Levels:
        """a_i, the weight of x_i in the posterior mean."""
        return self.kernel_mean * (self._before[1] / self.sigma) ** 2

    @property
    def posterior_data(self) -> Levels:
        """c_i, the weight of x_0 in the posterior mean."""
        return self._before[0] * self._shrinkage

    def times(self, sde: AffineSDE) -> Levels:
        """The times at which `sde` has the levels' log-SNR; its t_max for levels of more noise than there.

        DDPM's last level is such a one: the product of 1 - beta_i is below the exponential of - sum beta_i.  At t_max
        next to nothing is left of the data, and the noise predicted hardly changes from there on.

        Raises:
            ValueError: a level has less noise than the SDE at t_min, by more than 1 in log-SNR.
        """
        log_snr = 2 * jnp.log(self.alpha / self.sigma)
        ends = sde.log_snr(jnp.stack([jnp.asarray(t, log_snr.dtype) for t in (sde.t_max, sde.t_min)]))
        if is_concrete((log_snr, ends)) and not float(log_snr[0]) < float(ends[1]) + 1:
            raise ValueError(
                f"the chain starts at a log-SNR of {float(log_snr[0]):.3g}, beyond the {float(ends[1]):.3g} that "
                f"{type(sde).__name__} has at its t_min: its score does not know so little noise."
            )
        return sde.inverse_log_snr(jnp.clip(log_snr, ends[0], ends[1]))


def ddpm(steps: int = 1000, beta_min: Number = 0.1, beta_max: Number = 20.0) -> Chain:
    """DDPM's chain: beta_i rises linearly from beta_min/steps to beta_max/steps (Ho et al. 2020, section 4, for 1000).

    Raises:
        ValueError: steps <= beta_max: a beta_i would be 1 or more.
    """
    if is_concrete((beta_min, beta_max)) and not 0 < beta_min <= beta_max < steps:
        raise ValueError(
            f"expected 0 < beta_min <= beta_max < steps, got {beta_min}, {beta_max} and {steps}: beta_i is "
            "beta/steps and must stay below 1. Take more steps."
        )
    beta = jnp.linspace(beta_min / steps, beta_max / steps, steps, dtype=jnp.result_type(float))
    log_alpha = 0.5 * jnp.cumsum(jnp.log1p(-beta))
    return Chain(jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha)))


def ncsn(steps: int = 1000, sigma_min: Number = 0.01, sigma_max: Number = 50.0) -> Chain:
    """NCSN's and SMLD's levels: sigma_i geometric from sigma_min to sigma_max, alpha = 1 (Song & Ermon 2019)."""
    if steps < 2 or is_concrete((sigma_min, sigma_max)) and not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected 0 < sigma_min < sigma_max and steps > 1, got {sigma_min}, {sigma_max}, {steps}.")
    sigma = jnp.geomspace(sigma_min, sigma_max, steps, dtype=jnp.result_type(float))
    return Chain(jnp.ones_like(sigma), sigma)


def of_sde(sde: AffineSDE, steps: int) -> Chain:
    """The levels of an SDE at `steps` times from t_min to t_max, evenly spaced in log-SNR."""
    if steps < 1:
        raise ValueError(f"expected at least one level, got steps={steps}.")
    ends = sde.log_snr(jnp.stack([jnp.asarray(t, jnp.result_type(float)) for t in (sde.t_min, sde.t_max)]))
    t = sde.inverse_log_snr(jnp.linspace(ends[0], ends[1], steps))
    return Chain(sde.alpha(t), sde.sigma(t))
