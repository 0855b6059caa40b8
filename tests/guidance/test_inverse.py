"""Posteriors of linear measurements against closed forms; the bias of what is not exact, as the docs state it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.guidance import inverse
from score_sde.guidance.linear import conjugate_gradients
from tests.guidance.exact import SDE, Counted, affine_law, at, posterior

MATRIX = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.3]])
MEAN = np.array([0.5, -0.4, 0.2])
FAR = ss.VP(0.1, 40.0)  # its prior is the law at T to 5e-5: what is left is the method's own error
OTHERS = [ss.VE(), ss.SubVP(), ss.RectifiedFlow(), ss.EDM()]


def prior(covariance=COVARIANCE):
    return ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(covariance))


def operator():
    return ss.operators.Matrix((3,), jnp.asarray(MATRIX))


def measurements(n, key=1):
    """Of draws of the prior, with noise 0.4."""
    x = prior().sample(jax.random.key(key), n)
    return x, operator()(x) + 0.4 * jax.random.normal(jax.random.key(key + 1), (n, 2))


def posterior_score(sde, covariance, y, noise, x, t):
    """The score of the posterior, noised: a Gaussian for each measurement."""
    rows = []
    for i in range(len(x)):
        mean, spread = posterior(prior(covariance), MATRIX, np.asarray(y[i]), noise)
        alpha, sigma = float(sde.alpha(t[i])), float(sde.sigma(t[i]))
        rows.append(np.linalg.solve(alpha**2 * spread + sigma**2 * np.eye(3), alpha * mean - np.asarray(x[i])))
    return np.array(rows)


@pytest.mark.parametrize(
    "sde, noise", [(SDE, 0.4), *(pytest.param(sde, 0.0, marks=pytest.mark.slow) for sde in OTHERS)]
)
def test_exact_methods_give_the_posterior_score(sde, noise, x64):
    t = sde.inverse_log_snr(jnp.array([-3.0, -1.0, 0.5, 2.0, 5.0]))
    x, y = jax.random.normal(jax.random.key(0), (5, 3)) * (1 + sde.sigma(t))[:, None], measurements(5)[1]
    matched = ss.moment_matching(prior().score(sde), sde, operator(), y, noise)
    np.testing.assert_allclose(
        at(matched, x, t), posterior_score(sde, COVARIANCE, y, noise, x, t), rtol=1e-8, atol=1e-8
    )
    isotropic = 0.7 * np.eye(3)
    guided = ss.pigdm(prior(isotropic).score(sde), sde, operator(), y, noise, prior_variance=0.7)
    np.testing.assert_allclose(at(guided, x, t), posterior_score(sde, isotropic, y, noise, x, t), rtol=1e-8, atol=1e-8)
    wrong = ss.pigdm(prior(isotropic).score(sde), sde, operator(), y, noise, prior_variance=1.4)
    assert np.abs(at(wrong, x, t) - at(guided, x, t)).max() > 1e-3  # the variance matters


@pytest.mark.slow
def test_density_is_the_posteriors(x64):
    """A measurement for each sample goes through the likelihood's solver, which has a clock for each.

    In float64: FAR's alpha^2 ends at 2e-9, below float32's rounding of the covariance, whose derivative is refused.
    """
    y, x = measurements(2)[1], prior().sample(jax.random.key(5), 2)
    guided = ss.moment_matching(prior().score(FAR), FAR, operator(), y, 0.4, iterations=2)
    got = ss.log_prob(None, FAR, guided, x, divergence=ss.ExactDivergence(), t_start=1e-3)
    for i in (0, 1):
        mean, spread = posterior(prior(), MATRIX, np.asarray(y[i]), 0.4)
        law = ss.Gaussian(jnp.asarray(mean), jnp.asarray(spread))
        exact = law.marginal(FAR, 1e-3).log_prob(x[i : i + 1])[0]
        np.testing.assert_allclose(got.nats[i], exact, atol=1e-3)
        assert abs(prior().marginal(FAR, 1e-3).log_prob(x[i : i + 1])[0] - exact) > 0.2


@pytest.mark.parametrize(
    "method", ["dps", *(pytest.param(m, marks=pytest.mark.slow) for m in ("pigdm", "moment_matching"))]
)
def test_samples_do_not_know_their_batch(method):
    """The norm of a residual over the batch is the classic defect of DPS code."""
    y = measurements(64)[1]
    score = prior().score(SDE)

    def make(y):
        if method == "dps":
            return ss.dps(score, SDE, operator(), y, step=0.5)
        return getattr(ss, method)(score, SDE, operator(), y, 0.4, iterations=2)

    keys = jax.random.split(jax.random.key(3), 64)
    run = dict(sampler=ss.Ancestral(), steps=40)
    all_ = ss.sample(keys, SDE, make(y), (64, 3), **run).x
    for i in (0, 40):
        one = ss.sample(keys[i : i + 1], SDE, make(y[i : i + 1]), (1, 3), **run).x
        np.testing.assert_allclose(one[0], all_[i], rtol=1e-4, atol=1e-4)  # rounding, carried on by 40 steps


def test_published_dps_step_moves_by_its_length(x64):
    """Algorithm 1: with n steps of the reverse SDE the guidance moves x by 1000/n `step` of grad |y - A D(x)|."""
    y = jnp.array([[0.7, -0.2]])
    x, t, dt = jnp.array([[0.3, 0.1, -0.5]]), jnp.array([0.6]), 1e-3
    score = prior().score(SDE)

    def norm(x):
        data = (x + SDE.sigma(t)[:, None] ** 2 * score(x, t)) / SDE.alpha(t)[:, None]
        return jnp.linalg.norm(y - data @ MATRIX.T)

    guided = ss.dps(score, SDE, operator(), y, step=0.3)
    moved = SDE.diffusion(t)[:, None] ** 2 * dt * jax.jit(lambda x: guided(x, t) - score(x, t))(x)
    np.testing.assert_allclose(moved, -0.3 * jax.jit(jax.grad(norm))(x), rtol=1e-9)


def test_dps_takes_measurements_that_are_not_linear(x64):
    x, t = jnp.array([[0.3, 0.1, -0.5], [0.2, 0.4, 1.0]]), jnp.array([0.3, 0.6])
    y, score = jnp.array([[0.5], [0.1]]), prior().score(SDE)

    def log_likelihood(x):
        data = (x + SDE.sigma(t)[:, None] ** 2 * score(x, t)) / SDE.alpha(t)[:, None]
        return -jnp.sum((y[:, 0] - jnp.sum(data**2, 1)) ** 2) / (2 * 0.2**2)

    guided = ss.dps(score, SDE, lambda x: jnp.sum(x**2, 1, keepdims=True), y, 0.2)
    np.testing.assert_allclose(
        jax.jit(lambda x: guided(x, t) - score(x, t))(x), jax.jit(jax.grad(log_likelihood))(x), rtol=1e-9, atol=1e-12
    )


# As the table in the docs of score_sde.guidance.inverse has them.
TABLE = {
    "dps": ((1.785, 0.095), (0.362, 0.448)),
    "pigdm": ((1.052, 0.245), (0.568, 0.456)),
    "moment_matching": ((1.000, 0.250), (0.577, 0.456)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", TABLE)
def test_bias_is_as_documented(method, x64):
    """By the probability flow, which is affine here: its mean and covariance without sampling error."""
    law, y = ss.Gaussian(jnp.zeros(2), jnp.array([1.0, 0.25])), jnp.array([[1.5]])
    options = {"prior_variance": 0.5} if method == "pigdm" else {}
    total = ss.operators.Matrix((2,), jnp.ones((1, 2)))
    guided = getattr(ss, method)(law.score(FAR), FAR, total, y, 0.5, **options)
    mean, covariance = affine_law(FAR, guided, 2, rtol=1e-5, atol=1e-5, t_end=1e-4)
    np.testing.assert_allclose(mean, TABLE[method][0], atol=2e-3)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), TABLE[method][1], atol=2e-3)
    exact, spread = posterior(law, np.ones((1, 2)), np.array([1.5]), 0.5)
    close = np.abs(mean - exact).max() < 2e-3 and np.abs(covariance - spread).max() < 2e-3
    assert close == (method == "moment_matching")
    for text in (*TABLE[method][0], *TABLE[method][1]):
        assert f"{text:.3f}" in inverse.__doc__


def ranks(draws, truth):
    """How many of a truth's draws (n, L) are below it: uniform on 0..L where draws are of the posterior."""
    return (draws < truth[:, None]).sum(1)


def chi_square(counts):
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def calibration(law, solve, noise, n=400, draws=19):
    """Chi-square of the ranks of n truths of a law among posterior draws, in 20 cells, for two functions of x.

    `solve(key, y)` makes a draw for each of its measurements.
    """
    x = law.sample(jax.random.key(7), n)
    y = operator()(x) + noise * jax.random.normal(jax.random.key(9), (n, 2))
    out = solve(jax.random.key(11), jnp.repeat(y, draws, axis=0)).reshape(n, draws, 3)
    statistics = [lambda x: x[..., 0], lambda x: jnp.sum(x**2, -1)]
    return [chi_square(np.bincount(ranks(f(out), f(x)), minlength=draws + 1)) for f in statistics]


def along_the_flow(make):
    """Draws by the probability flow of the score that `make(y)` gives."""

    def solve(key, y):
        way = dict(sampler=ss.DPMSolverPP(2), steps=40, grid=ss.grids.log_snr, t_end=1e-3)
        return ss.sample(key, SDE, make(y), (len(y), 3), **way).x

    return solve


LIMIT = 43.8  # 0.999 of chi-square with 19 degrees of freedom


def test_moment_matching_is_calibrated():
    make = lambda y: ss.moment_matching(prior().score(SDE), SDE, operator(), y, 0.4, iterations=2)  # noqa: E731
    assert max(calibration(prior(), along_the_flow(make), 0.4)) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("believed, calibrated", [(0.7, True), (0.1, False)])
def test_pigdm_is_calibrated_where_the_prior_is_what_it_believes(believed, calibrated):
    law = ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(0.7))
    make = lambda y: ss.pigdm(law.score(SDE), SDE, operator(), y, 0.4, prior_variance=believed)  # noqa: E731
    found = max(calibration(law, along_the_flow(make), 0.4))
    assert found < LIMIT if calibrated else found > 2 * LIMIT


@pytest.mark.slow
def test_particles_are_calibrated_on_a_mixture():
    """Where no method that takes the data for Gaussian is; each draw has particles of its own."""
    law = ss.GaussianMixture(jnp.array([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.3]]), jnp.array([0.4, 0.3]))

    def solve(key, y):
        guided = ss.pigdm(law.score(SDE), SDE, operator(), y, 0.4)
        out = ss.sample_smc(key, SDE, guided, (len(y), 3), particles=64, steps=60, t_end=1e-3)
        return out.draw(jax.random.fold_in(key, 1))

    assert max(calibration(law, solve, 0.4, n=120)) < LIMIT


@pytest.mark.slow
def test_dps_is_not_calibrated():
    make = lambda y: ss.dps(prior().score(SDE), SDE, operator(), y, 0.4)  # noqa: E731
    assert max(calibration(prior(), along_the_flow(make), 0.4)) > 2 * LIMIT


@pytest.mark.slow
def test_dps_samples_what_a_measurement_that_is_not_linear_allows():
    """Of N(0, I) in the plane, given the distance from the origin: at that distance, in every direction alike."""
    law, n = ss.Gaussian(jnp.zeros(2), jnp.ones(2)), 1024
    y = jnp.where(jnp.arange(n) % 2 == 0, 1.0, 2.5)[:, None]
    distance = lambda x: jnp.sqrt(jnp.sum(x**2, 1, keepdims=True) + 1e-6)  # noqa: E731
    guided = ss.dps(law.score(SDE), SDE, distance, y, 0.2)
    way = dict(sampler=ss.DDIM(eta=1.0), steps=400, grid=ss.grids.log_snr)
    x = np.asarray(ss.sample(jax.random.key(0), SDE, guided, (n, 2), **way).x)
    found = np.linalg.norm(x, axis=1).reshape(-1, 2)
    assert np.abs(found.mean(0) - [1.0, 2.5]).max() < 0.1 and found.std(0).max() < 0.25
    assert np.abs((x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)).max() < 4 * (0.5 / n) ** 0.5


def test_conjugate_gradients_solve(x64):
    factor = jax.random.normal(jax.random.key(0), (4, 6, 6))
    matrix = jnp.einsum("bij,bkj->bik", factor, factor) + 0.1 * jnp.eye(6)[None]
    b = jax.random.normal(jax.random.key(1), (4, 6)).at[2].set(0.0)
    u = jax.jit(lambda b: conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", matrix, v), b, 12)[0])(b)
    np.testing.assert_allclose(u, np.linalg.solve(matrix, b[..., None])[..., 0], rtol=1e-8, atol=1e-12)


def test_other_measurements_do_not_compile_again():
    score = Counted(prior().score(SDE))

    def run(scale, y, noise):
        made = ss.operators.Matrix((3,), jnp.asarray(scale * MATRIX, float))
        guided = ss.moment_matching(score, SDE, made, y, noise, iterations=2)
        return ss.sample(jax.random.key(0), SDE, guided, (4, 3), steps=5, sampler=ss.Ancestral()).x

    y = measurements(4)[1]
    run(1.0, y, 0.4)
    traces = score.traces
    run(0.5, y + 1, 0.1)
    assert score.traces == traces


def test_evaluations_count_backward_passes():
    t, score, y = jnp.ones(3), prior().score(SDE), measurements(3)[1]
    assert ss.network_evaluations(score, t).tolist() == [1] * 3
    assert ss.network_evaluations(ss.pigdm(score, SDE, operator(), y, 0.1), t).tolist() == [2] * 3
    assert ss.network_evaluations(ss.moment_matching(score, SDE, operator(), y, 0.1, iterations=4), t)[0] == 6


def refused(message, y=((0.1, 0.2),), noise=0.4, make=None, shape=(4, 3), method="moment_matching", **options):
    score = prior().score(SDE)
    with pytest.raises(ValueError, match=message):
        made = operator() if make is None else make
        guided = getattr(ss, method)(score, SDE, made, jnp.asarray(y), noise, **options)
        ss.sample(jax.random.key(0), SDE, guided, shape, steps=2)


def test_bad_measurements_are_refused():
    refused("finite values of y", y=((jnp.nan, 0.2),))
    refused("expected y of shape", y=((0.1, 0.2, 0.3),))
    refused("expected y for a batch of 4", y=np.zeros((3, 2)))
    refused("is for samples of shape", shape=(4, 5))
    refused("noise must be at least 0", noise=-1.0)
    refused("finite values of noise", noise=jnp.inf)
    refused("either noise or step", method="dps", step=0.3)
    refused("noise must be positive", method="dps", noise=0.0)
    refused("expected y of shape", y=((0.1, 0.2),), method="dps", make=lambda x: x)
    refused("prior_variance", method="pigdm", prior_variance=0.0)
    refused("iterations", iterations=0)
