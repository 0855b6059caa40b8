"""Euler-Maruyama against closed forms: weak order, strong order, and the law of its samples.

With the exact score of a Gaussian a step is affine, x <- A x + b + C z, so the law of the chain is a Gaussian that
follows from A, b and C without any sampling.  Those are read off `step` itself,
by putting basis vectors in for x and z.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.sampling import predictors
from tests.catalogue import SDES, OrnsteinUhlenbeck, name
from tests.scores import WAYS, ExactScore

MEAN = np.array([1.0, -0.5])
ROTATED = np.array([[0.5, 0.2], [0.2, 0.3]])


def log_snr_grid(sde, n):
    """n steps of equal length in log-SNR: none of the SDEs is stiff on it."""
    ends = sde.log_snr(jnp.asarray([sde.t_max, sde.t_sampling], jnp.result_type(float)))
    return sde.inverse_log_snr(jnp.linspace(ends[0], ends[1], n + 1))


def injected(monkeypatch):
    """A cell whose "z" takes the place of the sampler's normal draws."""
    cell = {}
    monkeypatch.setattr(predictors, "normal", lambda keys, x: cell["z"])
    return cell


@pytest.fixture
def noise(monkeypatch):
    return injected(monkeypatch)


SIZES = (100, 200, 400, 800)


def step_maps(noise, sde, target):
    """{n: (times, A (n, 2, 2), b (n, 2), C (n, 2, 2))} of n Euler-Maruyama steps, from one batched call of `step`."""

    @trees.jit
    def evaluate(sde, target, basis, t, t_next):
        x, noise["z"] = jnp.split(basis, 2, axis=1)
        keys = jax.random.split(jax.random.key(0), t.size)
        return ss.EulerMaruyama().step(keys, sde, target.score(sde), x, t, t_next)

    finest = np.asarray(log_snr_grid(sde, SIZES[-1]))
    grids = {n: finest[:: SIZES[-1] // n] for n in SIZES}
    t, t_next = (np.concatenate([times[part] for times in grids.values()]) for part in (np.s_[:-1], np.s_[1:]))
    basis = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    values = evaluate(sde, target, np.tile(basis, (t.size, 1)), np.repeat(t, 5), np.repeat(t_next, 5))
    values = np.asarray(values).reshape(-1, 5, 2)
    offsets, slopes = values[:, 0], (values[:, 1:] - values[:, :1]).transpose(0, 2, 1)
    cuts = np.cumsum(SIZES)[:-1]
    parts = (np.split(part, cuts) for part in (slopes[..., :2], offsets, slopes[..., 2:]))
    return dict(zip(SIZES, zip(grids.values(), *parts, strict=True), strict=True))


def law_after(maps, mean, covariance):
    """Mean and covariance after all steps."""
    for a, b, c in zip(*maps, strict=True):
        mean, covariance = a @ mean + b, a @ covariance @ a.T + c @ c.T
    return mean, covariance


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weak_order_is_one(sde, x64, noise):
    target, errors = ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(ROTATED)), []
    for times, *maps in step_maps(noise, sde, target).values():
        start, end = (target.marginal(sde, t) for t in (times[0], times[-1]))
        mean, covariance = law_after(maps, np.asarray(start.mean), np.asarray(start.covariance))
        errors.append((np.linalg.norm(mean - end.mean), np.linalg.norm(covariance - end.covariance)))
    for error in np.transpose(errors):
        if error.max() > 1e-12:  # the mean is exact for VE, EDM (constant) and RectifiedFlow (a straight line)
            slope = np.polyfit(np.log(SIZES), np.log(error), 1)[0]
            assert slope <= -0.7, error  # theory 1; measured 1.00 to 1.10, 2.0 for VE's covariance
            assert error[-1] < 6e-3  # measured at most 4.3e-3 (EDM), against a covariance of norm 0.65


@pytest.mark.parametrize("sde", [ss.VP(), OrnsteinUhlenbeck()], ids=name)
def test_strong_order_is_one_on_shared_brownian_paths(sde, x64, noise):
    paths, fine, span = 64, 4096, float(sde.t_max) - float(sde.t_sampling)
    target = ss.GaussianMixture(jnp.array([[1.0, -0.5], [-0.8, 0.6]]), jnp.array([[0.5, 0.6], [0.6, 0.4]]))
    score = target.score(sde)
    increments = jax.random.normal(jax.random.key(0), (fine, paths, 2)) * (span / fine) ** 0.5
    x_init = sde.prior_sample(jax.random.key(1), (paths, 2))
    keys = jax.random.split(jax.random.key(2), paths)

    def solve(n):
        times = jnp.linspace(float(sde.t_max), float(sde.t_sampling), n + 1)
        z = increments.reshape(n, fine // n, paths, 2).sum(1) / (span / n) ** 0.5

        def step(x, inputs):
            t, t_next, noise["z"] = inputs
            t, t_next = jnp.full(paths, t), jnp.full(paths, t_next)
            return ss.EulerMaruyama().step(keys, sde, score, x, t, t_next), None

        return jax.jit(lambda: jax.lax.scan(step, x_init, (times[:-1], times[1:], z))[0])()

    reference, sizes = solve(fine), (32, 64, 128, 256)
    errors = [float(jnp.sqrt(jnp.mean(jnp.square(solve(n) - reference)))) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope <= -0.7, errors  # theory 1, for additive noise (1/2 otherwise)


# Two identical components are a Gaussian: it runs in the mixture's program.
COMPONENT_STDS = np.array([0.6, 0.3])
GAUSSIAN = ss.GaussianMixture(np.tile(MEAN, (2, 1)), np.tile(COMPONENT_STDS, (2, 1)))
MIXTURE = ss.GaussianMixture([[1.0, -0.5], [-0.8, 0.6]], [[0.3, 0.5], [0.4, 0.2]], [0.7, 0.3])
SAMPLES, STEPS = 1000, 200


def samples(sde, target, way):
    target = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), target)
    score = ExactScore(target, sde, jnp.array(WAYS.index(way)))
    seed = 100 * [name(s) for s in SDES].index(name(sde)) + WAYS.index(way)
    out = ss.sample(jax.random.key(seed), sde, score, (SAMPLES, 2), grid=log_snr_grid(sde, STEPS))
    return np.asarray(out.x, np.float64)


def z_scores(x, mean, variance, fourth, mean_bias=0.0, variance_bias=0.0):
    """Of the sample mean and variance, in standard errors, after allowing for biases."""
    deviations = (
        np.maximum(np.abs(x.mean(0) - mean) - mean_bias, 0),
        np.maximum(np.abs(np.square(x - mean).mean(0) - variance) - variance_bias * variance, 0),
    )
    errors = np.sqrt(variance / len(x)), np.sqrt((fourth - variance**2) / len(x))
    return np.concatenate([d / e for d, e in zip(deviations, errors, strict=True)])


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_samples_follow_the_exact_law_of_the_discrete_chain(sde, monkeypatch):
    with jax.enable_x64(True), monkeypatch.context() as patch:
        target = ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(COMPONENT_STDS**2))
        _, *maps = step_maps(injected(patch), sde, target)[STEPS]
        mean, covariance = law_after(maps, np.zeros(2), float(sde.prior_std()) ** 2 * np.eye(2))
    variance = np.diag(covariance)
    for way in WAYS:
        z = z_scores(samples(sde, GAUSSIAN, way), mean, variance, 3 * variance**2)
        assert z.max() < 4.5, (way, z)  # 168 statistics in all: chance of one beyond is 1e-3


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_samples_of_a_mixture_have_its_moments(sde):
    marginal = MIXTURE.marginal(sde, sde.t_sampling)
    means, stds, weights = (np.asarray(a, np.float64) for a in (marginal.means, marginal.stds, marginal.weights))
    mean = weights @ means
    offset = means - mean
    variance = weights @ (offset**2 + stds**2)
    fourth = weights @ (offset**4 + 6 * offset**2 * stds**2 + 3 * stds**4)
    for way in WAYS:
        # Bias of 200 steps, from 1e5 samples of each SDE: at most 0.004 in the mean, 0.013 relative in the variance.
        z = z_scores(samples(sde, MIXTURE, way), mean, variance, fourth, mean_bias=0.005, variance_bias=0.015)
        assert z.max() < 4.5, (way, z)
