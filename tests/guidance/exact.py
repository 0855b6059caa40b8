"""Exact classifiers, labelled scores and posteriors of the analytic targets, and counters, that the tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import score_sde as ss
from score_sde import trees
from score_sde.arrays import expand

SDE = ss.VP()
at = trees.jit(lambda score, x, t: score(x, t))  # a score at given points, compiled
MEANS, STDS, WEIGHTS = (
    np.array([[-1.0, 0.5], [1.2, 0.0], [0.0, -1.5]]),
    np.array([0.4, 0.3, 0.5]),
    np.array([2.0, 1, 1]),
)


def mixture() -> ss.GaussianMixture:
    """Three overlapping components of unequal weights; each is a class."""
    return ss.GaussianMixture(*(jnp.array(v.tolist()) for v in (MEANS, STDS, WEIGHTS)))


def component(k: int) -> ss.Gaussian:
    """The conditional law of class k."""
    return ss.Gaussian(jnp.array(MEANS[k].tolist()), STDS[k] ** 2)


class Classifier(ss.Frozen):
    """p_t(component | x) by Bayes' rule, written out anew."""

    sde: ss.AffineSDE = SDE

    def __call__(self, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        means, stds = jnp.asarray(MEANS, x.dtype), jnp.asarray(STDS, x.dtype)
        variances = (alpha * stds[None]) ** 2 + sigma**2
        squares = jnp.sum((x[:, None] - alpha[..., None] * means[None]) ** 2, -1)
        logs = -0.5 * squares / variances - jnp.log(variances) + jnp.log(jnp.asarray(WEIGHTS, x.dtype))[None]
        return jax.nn.log_softmax(logs)


class Labelled(ss.Frozen):
    """score(x, t, label): that of the component, or of the mixture for label 3."""

    def __call__(self, x: Array, t: Array, label: Array) -> Array:
        alpha, sigma = expand(SDE.alpha(t), x), expand(SDE.sigma(t), x)
        means, stds = jnp.asarray(MEANS, x.dtype), jnp.asarray(STDS, x.dtype)
        known = jnp.minimum(label, 2)
        one = (alpha * means[known] - x) / ((alpha * stds[known][:, None]) ** 2 + sigma**2)
        return jnp.where((label == 3)[:, None], mixture().score(SDE)(x, t).astype(x.dtype), one)


class Counted:
    """A function that notes the batch sizes of which it is evaluated when the program runs, and how often traced."""

    def __init__(self, fn):
        self.fn, self.sizes, self.traces = fn, [], 0

    def __call__(self, x, *args):
        self.traces += 1
        size = x.shape[0]
        jax.debug.callback(lambda _: self.sizes.append(size), x.ravel()[0])
        return self.fn(x, *args)

    def counted(self) -> list[int]:
        jax.effects_barrier()
        sizes, self.sizes = self.sizes, []
        return sizes


def posterior(prior: ss.Gaussian, matrix: np.ndarray, y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x given y = M x + noise z, of one Gaussian prior, by the textbook formula in float64."""
    mean, covariance = np.asarray(prior.mean, float).ravel(), np.asarray(prior.covariance, float)
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise**2 * np.eye(len(matrix)))
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def affine_law(sde, guided, size, **options) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what an affine probability flow makes of the prior: no sampling error, size + 1 solves."""
    corners = jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size)])
    x = ss.sample_adaptive(jax.random.key(0), sde, guided, corners.shape, x_init=corners, **options).x
    columns = np.asarray(x[1:] - x[:1]) * float(sde.prior_std())
    return np.asarray(x[0]), columns.T @ columns
