"""Targets against their definition: matrices of numpy, autodiff, quadrature, and the moments of their samples."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from tests.catalogue import SDES, name, times_of

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(3, 2))


def name_of(parameter):
    """Of a target, by its key, or of an SDE."""
    return parameter if isinstance(parameter, str) else name(parameter)


def covariance(size):
    """A full positive definite matrix."""
    root = np.random.default_rng(1).normal(size=(size, size))
    return root @ root.T / size + 0.3 * np.eye(size)


def mixture(event, diagonal):
    """Three components, unequal in weight and width."""
    rng = np.random.default_rng(2)
    stds = rng.uniform(0.3, 0.8, (3, *event) if diagonal else 3)
    return ss.GaussianMixture(1.5 * rng.normal(size=(3, *event)), stds, np.array([0.2, 0.3, 0.5]))


TARGETS = {
    "scalar event": lambda: ss.Gaussian(0.3, 0.5),
    "isotropic": lambda: ss.Gaussian(MEAN[0], 0.5),
    "diagonal": lambda: ss.Gaussian(MEAN, np.array([[0.5, 1.0], [0.2, 2.0], [0.7, 0.4]])),
    "full": lambda: ss.Gaussian(MEAN[0], covariance(2)),
    "full over a matrix": lambda: ss.Gaussian(MEAN, covariance(6)),
    "mixture of scalars": lambda: mixture((), False),
    "mixture": lambda: mixture((2,), False),
    "mixture, diagonal": lambda: mixture((2,), True),
    "mixture of matrices": lambda: mixture((3, 2), False),
    "mixture of matrices, diagonal": lambda: mixture((3, 2), True),
}
every_target = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
on_the_line = pytest.mark.parametrize("make", [TARGETS["scalar event"], TARGETS["mixture of scalars"]], ids=["G", "GM"])
WIDEST = ["full over a matrix", "mixture of matrices, diagonal"]
widest = pytest.mark.parametrize("make", [TARGETS[key] for key in WIDEST], ids=WIDEST)


def components(target):
    """(weight, mean, covariance) of each component, over the flattened event, as numpy arrays."""
    if isinstance(target, ss.Gaussian):
        return [(1.0, np.ravel(target.mean), np.asarray(target.covariance))]
    stds = np.broadcast_to(target.stds, target.means.shape)
    return [
        (float(w), np.ravel(m), np.diag(np.ravel(s) ** 2))
        for w, m, s in zip(target.weights, target.means, stds, strict=True)
    ]


def moments(target):
    """Mean and covariance over the flattened event."""
    parts = components(target)
    mean = sum(w * m for w, m, _ in parts)
    return mean, sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in parts)


def points(target, n, scale=1.0):
    """n points around the target, by numpy."""
    event = target.mean.shape if isinstance(target, ss.Gaussian) else target.means.shape[1:]
    return jnp.asarray(scale * np.random.default_rng(3).normal(size=(n, *event)))


def normal_density(x, mean, cov):
    """By a linear solve and a determinant, where the code has eigenvectors or independent coordinates."""
    centred = x - mean
    exponent = np.einsum("bi,ib->b", centred, np.linalg.solve(cov, centred.T))
    return np.exp(-0.5 * exponent) / np.sqrt(np.linalg.det(2 * np.pi * cov))


# ---- density and score


def test_the_covariance_is_the_one_given(x64):
    for given, full in [
        (covariance(6), covariance(6)),
        (0.5, 0.5 * np.eye(6)),
        (MEAN**2, np.diag(np.ravel(MEAN**2))),
    ]:
        np.testing.assert_allclose(ss.Gaussian(MEAN, given).covariance, full, rtol=0, atol=1e-14)


@every_target
def test_density_is_that_of_the_components(make, x64):
    target = make()
    x = points(target, 8)
    flat = np.asarray(x).reshape(8, -1)
    exact = sum(w * normal_density(flat, m, c) for w, m, c in components(target))
    # float64, and a 6 x 6 solve of condition below 100.
    np.testing.assert_allclose(jax.jit(target.log_prob)(x), np.log(exact), rtol=1e-11)


@every_target
def test_score_is_the_gradient_of_the_density(make, x64):
    target = make()
    x = points(target, 8, scale=3.0)
    score, gradient = jax.jit(jax.vmap(lambda x: (target.score_at(x), jax.grad(target.log_prob_at)(x))))(x)
    np.testing.assert_allclose(score, gradient, rtol=1e-10, atol=1e-12)


@every_target
def test_score_under_an_sde_is_that_of_the_marginal_at_each_time(make, x64):
    target, sde = make(), ss.SubVP()
    x, t = points(target, 4), jnp.asarray(times_of(sde, 4))
    score = trees.jit(lambda score, x, t: score(x, t))(target.score(sde), x, t)
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, t: target.marginal(sde, t).log_prob_at(x))))(x, t)
    np.testing.assert_allclose(score, gradient, rtol=1e-10)


@on_the_line
def test_density_integrates_to_one_on_the_line(make, x64):
    # The trapezoid rule is exact to rounding for Gaussians wider than two steps; 10 standard deviations hold 1 - 1e-23.
    x = np.linspace(-12, 12, 1001)
    np.testing.assert_allclose(np.exp(make().log_prob(jnp.asarray(x))).sum() * (x[1] - x[0]), 1, rtol=1e-12)


@pytest.mark.parametrize("key", ["isotropic", "full", "mixture", "mixture, diagonal"])
def test_density_integrates_to_one_in_the_plane(key, x64):
    line = np.linspace(-12, 12, 241)
    x = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    total = np.exp(TARGETS[key]().log_prob(jnp.asarray(x))).sum() * (line[1] - line[0]) ** 2
    np.testing.assert_allclose(total, 1, rtol=1e-12)


# Every SDE with one target, and another kind of target with one SDE.
MARGINALS = [("mixture of scalars", sde) for sde in SDES] + [("scalar event", ss.SubVP())]


@pytest.mark.parametrize("key, sde", MARGINALS, ids=name_of)
def test_marginal_is_the_convolution_with_the_noise(key, sde, x64):
    target = TARGETS[key]()
    y = np.linspace(-12, 12, 20_001)
    density = np.exp(target.log_prob(jnp.asarray(y))) * (y[1] - y[0])
    for t in times_of(sde, 9)[4:]:  # sigma above some steps, where the trapezoid rule is exact to rounding
        alpha, sigma = (float(f(jnp.asarray(t))) for f in (sde.alpha, sde.sigma))
        if sigma < 3 * alpha * (y[1] - y[0]):
            continue
        x = alpha * np.array([-2.0, 0.1, 1.3]) + sigma * np.array([-1.5, 0.2, 1.0])
        kernel = np.exp(-0.5 * ((x[:, None] - alpha * y) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        marginal = np.exp(target.marginal(sde, t).log_prob(jnp.asarray(x)))
        np.testing.assert_allclose(marginal, kernel @ density, rtol=1e-9)


@every_target
def test_marginal_moments_are_those_of_scaled_data_and_noise(make, x64):
    target, sde, t = make(), ss.SubVP(), 0.3
    alpha, sigma = float(sde.alpha(jnp.array(t))), float(sde.sigma(jnp.array(t)))
    mean, cov = moments(target)
    noised_mean, noised_cov = moments(target.marginal(sde, t))
    np.testing.assert_allclose(noised_mean, alpha * mean, rtol=1e-13)
    np.testing.assert_allclose(noised_cov, alpha**2 * cov + sigma**2 * np.eye(len(mean)), rtol=1e-12, atol=1e-14)


# ---- samples


@cache
def samples(make):
    """20,000 samples and their target; drawn once, since threefry compiles slowly."""
    target = make()
    return target, trees.jit(lambda target: target.sample(KEY, 20_000))(target)


@widest
def test_samples_have_the_moments_of_the_target(make):
    """Within 5 standard errors, measured on the samples: false alarm 6e-7 for each of at most 27 moments."""
    target, x = samples(make)
    n = len(x)
    x = np.asarray(x, np.float64).reshape(n, -1)
    mean, cov = moments(target)
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    for values, exact in ((x, mean), (products, cov)):
        assert (np.abs(values.mean(0) - exact) < 5 * values.std(0) / math.sqrt(n)).all()


def test_mixture_samples_follow_the_distribution_function():
    target, x = samples(TARGETS["mixture of scalars"])
    n, x = len(x), np.sort(np.asarray(x, np.float64))
    cdf = sum(
        w * np.array([0.5 * math.erfc((m[0] - v) / math.sqrt(2 * c[0, 0])) for v in x])
        for w, m, c in components(target)
    )
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert math.sqrt(n) * distance < 2.7  # Kolmogorov-Smirnov: false alarm 2 exp(-2 * 2.7^2) = 1e-6


@widest
def test_a_sample_depends_on_its_key_alone(make):
    target, x = samples(make)
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in (0, 41)])
    two = trees.jit(lambda target, keys: target.sample(keys, 2))(target, keys)
    assert two.shape == (2, 3, 2)
    np.testing.assert_allclose(two, x[jnp.array([0, 41])], rtol=1e-5, atol=1e-6)  # float32 sums over 6 axes


# ---- probability flow


# Every SDE with the widest Gaussian, and every Gaussian with one SDE.
FLOWS = [("full over a matrix", sde) for sde in SDES] + [(key, ss.SubVP()) for key in list(TARGETS)[:4]]
every_flow = pytest.mark.parametrize("key, sde", FLOWS, ids=name_of)


@every_flow
def test_flow_map_solves_the_probability_flow(key, sde, x64):
    target = TARGETS[key]()
    start, *ends = times_of(sde, 4)
    x = points(target, 3)
    for end in ends:
        carried, slope = jax.jvp(lambda end: target.flow_map(sde, x, start, end), (jnp.array(end),), (jnp.array(1.0),))
        t = jnp.full(3, end)
        velocity = sde.flow_drift(target.score(sde), carried, t)
        scale = np.abs(sde.drift(carried, t)).max() + np.abs(velocity).max()  # the two terms of the drift cancel
        np.testing.assert_allclose(slope, velocity, rtol=0, atol=1e-11 * scale)


@every_flow
def test_flow_map_starts_at_the_identity_and_returns(key, sde, x64):
    target = TARGETS[key]()
    start, end = times_of(sde, 2)
    x = points(target, 3)
    np.testing.assert_allclose(target.flow_map(sde, x, start, start), x, rtol=1e-13, atol=1e-13)
    back = target.flow_map(sde, target.flow_map(sde, x, start, end), end, start)
    # float64 at the scale of sigma(T) = 80, and alpha m of order 1 beside a stretch of order 1/80 on the way back.
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-12)


# ---- forms


@widest
def test_float32_stays_float32(make, x64):
    target, sde = jax.tree.map(lambda a: a.astype(jnp.float32), make()), ss.VP()

    def everything(target, x, t):
        return target.sample(KEY, 4), target.score(sde)(x, t), target.log_prob(x), target.marginal(sde, 0.5).log_prob(x)

    x, t = points(target, 4).astype(jnp.float32), jnp.full(4, 0.5, jnp.float32)
    results = jax.eval_shape(everything, target, x, t)
    assert [(r.dtype, r.shape) for r in results] == [("float32", x.shape)] * 2 + [("float32", (4,))] * 2


def test_whole_numbers_are_taken_as_floats():
    for target in (ss.Gaussian(np.arange(2), 0.5), ss.Gaussian([0, 1], 0.5), ss.GaussianMixture([[0, 1]], [1])):
        assert target.dtype == target.log_prob(jnp.ones((1, 2))).dtype == jnp.float32


def test_weights_are_normalised_and_equal_unless_given(x64):
    means, stds = jnp.array([[0.0], [1.0]]), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(ss.GaussianMixture(means, stds).weights, [0.5, 0.5])
    np.testing.assert_allclose(ss.GaussianMixture(means, stds, jnp.array([1.0, 3.0])).weights, [0.25, 0.75])


def test_other_targets_do_not_compile_again():
    call = trees.jit(lambda score, x, t: score(x, t))
    x, t = jnp.ones((4, 2)), jnp.full(4, 0.5)
    for mean in (0.0, 1.0):
        call(ss.Gaussian(jnp.full(2, mean), 0.5).score(ss.VP()), x, t)
        call(ss.GaussianMixture(jnp.full((3, 2), mean), jnp.ones(3)).score(ss.VP()), x, t)
    assert call.cache_size() == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ss.Gaussian(np.zeros(2), np.ones(3)), r"covariance of shape \(\), \(2,\) or \(2, 2\), got \(3,\)"),
        (lambda: ss.Gaussian(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]])), "covariance must be symmetric"),
        (lambda: ss.Gaussian(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])), "positive definite, smallest .* -1"),
        (lambda: ss.Gaussian(np.zeros(2), np.array([1.0, 0.0])), "must be positive definite, smallest eigenvalue 0.0"),
        (lambda: ss.Gaussian(np.zeros(2), np.nan), "must be positive definite"),
        (lambda: ss.GaussianMixture(np.zeros((3, 2)), np.ones(2)), r"stds of shape \(3,\) or \(3, 2\) .*got \(2,\)"),
        (lambda: ss.GaussianMixture(np.zeros((3, 2)), np.ones(3), np.ones(2)), r"weights of shape \(3,\), got .* \(2,"),
        (lambda: ss.GaussianMixture(np.zeros((2, 2)), np.array([1.0, -1.0])), "stds and weights must be positive"),
        (lambda: ss.GaussianMixture(np.zeros((2, 2)), np.ones(2), np.array([1.0, 0.0])), "must be positive"),
    ],
)
def test_what_is_no_distribution_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
