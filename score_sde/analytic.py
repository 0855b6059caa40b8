"""Targets whose score, density and noised marginals are known in closed form.

Under an affine SDE, noise turns a Gaussian N(m, C) into N(alpha m, alpha^2 C + sigma^2 I) and acts on a mixture
component by component, so the marginal at any time is a target of the same kind: `target.marginal(sde, t)`.  Samplers,
likelihoods and objectives of this package are tested against these.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from score_sde.arrays import sample_keys
from score_sde.sdes import AffineSDE
from score_sde.trees import Frozen, Number, is_concrete


class Target(Frozen):
    """A distribution on arrays of shape `event`: exact density, score, samples, and marginals under any AffineSDE."""

    def score(self, sde: AffineSDE) -> "TargetScore":
        """The exact score(x, t) = grad log p_t(x) of the noised target, as a function that `jit` can trace."""
        return TargetScore(self, sde)

    def marginal(self, sde: AffineSDE, t: Number) -> "Target":
        """The law of x_t, t a scalar."""
        t = jnp.asarray(t, self.dtype)
        return self.noised(sde.alpha(t), sde.sigma(t))

    def log_prob(self, x: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Log-density in nats of x (B, *event)."""
        return jax.vmap(self.log_prob_at)(x)

    def sample(self, key: Array, n: int) -> Float[Array, "n ..."]:
        """`n` samples; `key` is one key or one per sample."""
        return jax.vmap(self.sample_at)(sample_keys(key, n))


class TargetScore(Frozen):
    """Exact score of a target under an SDE."""

    target: Target
    sde: AffineSDE

    def __call__(self, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, "b ..."]:
        return jax.vmap(lambda x, t: self.target.marginal(self.sde, t).score_at(x))(x, t)


def _floating(x) -> Array:
    """`x` as an array of its own floating dtype, or of the default one."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


class Gaussian(Target):
    """N(mean, covariance) on arrays of shape `event` = mean.shape.

    `covariance` is a scalar (isotropic), an array of shape `event` (diagonal), or a matrix (D, D) over the flattened
    event, D = mean.size.  It is kept as eigenvalues and eigenvectors, in which noise is diagonal.
    """

    mean: Array
    variances: Array  # (D,) eigenvalues
    axes: Array  # (D, D), eigenvectors in columns

    def __init__(self, mean, covariance=1.0):
        mean = _floating(mean)
        covariance = jnp.asarray(covariance, mean.dtype)
        size = mean.size
        if covariance.ndim == 0 or covariance.shape == mean.shape:
            variances, axes = jnp.broadcast_to(covariance, mean.shape).ravel(), jnp.eye(size, dtype=mean.dtype)
        elif covariance.shape == (size, size):
            if is_concrete(covariance) and not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
                raise ValueError("Gaussian: covariance must be symmetric.")
            variances, axes = jnp.linalg.eigh(covariance)
        else:
            raise ValueError(
                f"Gaussian: expected a covariance of shape (), {mean.shape} or {(size, size)}, got {covariance.shape}."
            )
        if is_concrete(variances) and not np.all(np.asarray(variances) > 0):
            raise ValueError(f"Gaussian: covariance must be positive definite, smallest eigenvalue {variances.min()}.")
        self._set(mean, variances, axes)

    def _set(self, mean, variances, axes):
        for name, value in zip(("mean", "variances", "axes"), (mean, variances, axes), strict=True):
            object.__setattr__(self, name, value)
        return self

    @property
    def dtype(self):
        return self.mean.dtype

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """The covariance matrix over the flattened event."""
        return (self.axes * self.variances[None]) @ self.axes.T

    def noised(self, alpha: Number, sigma: Number) -> "Gaussian":
        """The law of alpha x + sigma eps."""
        variances = alpha**2 * self.variances + sigma**2
        return object.__new__(Gaussian)._set(alpha * self.mean, variances, self.axes)

    def score_at(self, x: Array) -> Array:
        """grad log p at one x of shape `event`."""
        y = self.axes.T @ (x - self.mean).ravel()
        return -(self.axes @ (y / self.variances)).reshape(x.shape)

    def log_prob_at(self, x: Array) -> Array:
        """log p at one x of shape `event`."""
        y = self.axes.T @ (x - self.mean).ravel()
        return -0.5 * jnp.sum(jnp.square(y) / self.variances + jnp.log(2 * jnp.pi * self.variances))

    def sample_at(self, key: Array) -> Array:
        """One sample."""
        z = jax.random.normal(key, self.variances.shape, self.dtype)
        return self.mean + (self.axes @ (jnp.sqrt(self.variances) * z)).reshape(self.mean.shape)

    def flow_map(self, sde: AffineSDE, x: Float[Array, "b ..."], start: Number, end: Number) -> Float[Array, "b ..."]:
        """Where the probability flow carries x from time `start` to time `end`.

        The flow of a Gaussian is affine: m_e + C_e^(1/2) C_s^(-1/2) (x - m_s), with m and C the marginal mean and
        covariance at both times, which share their eigenvectors.
        """
        first, last = self.marginal(sde, start), self.marginal(sde, end)
        stretch = jnp.sqrt(last.variances / first.variances)

        def carry(x):
            y = self.axes.T @ (x - first.mean).ravel()
            return last.mean + (self.axes @ (stretch * y)).reshape(x.shape)

        return jax.vmap(carry)(x)


class GaussianMixture(Target):
    """sum_k weights_k N(means_k, stds_k^2) on arrays of shape `event`.

    Args:
        means: (K, *event).
        stds: (K,) for isotropic components, or (K, *event) for diagonal ones; positive.
        weights: (K,), positive; normalised to sum 1.  Equal unless given.
    """

    means: Array
    stds: Array
    weights: Array

    def __init__(self, means, stds, weights=None):
        means = _floating(means)
        stds = jnp.asarray(stds, means.dtype)
        weights = jnp.ones(means.shape[0], means.dtype) if weights is None else jnp.asarray(weights, means.dtype)
        if stds.shape not in (means.shape[:1], means.shape) or weights.shape != means.shape[:1]:
            raise ValueError(
                f"GaussianMixture: means of shape {means.shape} need stds of shape {means.shape[:1]} or {means.shape} "
                f"and weights of shape {means.shape[:1]}, got {stds.shape} and {weights.shape}."
            )
        if is_concrete((stds, weights)) and not (np.all(np.asarray(stds) > 0) and np.all(np.asarray(weights) > 0)):
            raise ValueError("GaussianMixture: stds and weights must be positive.")
        stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim))
        for name, value in zip(("means", "stds", "weights"), (means, stds, weights / weights.sum()), strict=True):
            object.__setattr__(self, name, value)

    @property
    def dtype(self):
        return self.means.dtype

    def noised(self, alpha: Number, sigma: Number) -> "GaussianMixture":
        """The law of alpha x + sigma eps."""
        stds = jnp.sqrt(alpha**2 * self.stds**2 + sigma**2)
        mixture = object.__new__(GaussianMixture)
        for name, value in zip(("means", "stds", "weights"), (alpha * self.means, stds, self.weights), strict=True):
            object.__setattr__(mixture, name, value)
        return mixture

    def _component_log_probs(self, x: Array) -> Float[Array, " k"]:
        z = (x[None] - self.means) / self.stds
        logs = -0.5 * jnp.square(z) - jnp.log(self.stds) - 0.5 * float(np.log(2 * np.pi))
        return logs.reshape(logs.shape[0], -1).sum(1) + jnp.log(self.weights)

    def score_at(self, x: Array) -> Array:
        """grad log p at one x of shape `event`: the components' scores, weighted by their posterior probabilities."""
        posterior = jax.nn.softmax(self._component_log_probs(x))
        scores = (self.means - x[None]) / self.stds**2
        return jnp.tensordot(posterior, scores, 1)

    def log_prob_at(self, x: Array) -> Array:
        """log p at one x of shape `event`."""
        return jax.nn.logsumexp(self._component_log_probs(x))

    def sample_at(self, key: Array) -> Array:
        """One sample."""
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights))
        z = jax.random.normal(key_noise, self.means.shape[1:], self.dtype)
        return self.means[k] + self.stds[k] * z
