"""Denoising score matching: the loss of each sample, and what minimises its mean."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.predictions import convert
from tests.catalogue import PREDICTIONS, SDES, WEIGHTINGS, name

kinds, weightings = ss.predictions, ss.weightings
KEY = jax.random.key(0)
B = 32
X0 = np.random.default_rng(0).normal(size=(B, 3))
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_kind = pytest.mark.parametrize("kind", PREDICTIONS, ids=name)


def some_score(x, t):
    """Nobody's score, smooth and of order 1."""
    return -jnp.sin(x) - 0.3 * jnp.cos(t)[:, None]


def loss_and_draws(sde, predict, x0=X0, **options):
    """The losses, and the (x_t, t, noise) they were taken at, told by what `predict` was given."""
    calls = []
    x0 = jnp.asarray(x0)
    loss = ss.denoising_score_matching(KEY, sde, lambda x, t: calls.append((x, t)) or predict(x, t), x0, **options)
    ((x, t),) = calls
    return loss, x, t, noise_of(sde, x0, x, t)


def noise_of(sde, x0, x, t):
    """eps of x_t = alpha x_0 + sigma eps."""
    alpha, sigma = (f(t).reshape((-1,) + (1,) * (x.ndim - 1)) for f in (sde.alpha, sde.sigma))
    return (x - alpha * x0) / sigma


# ---- one sample


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name)
@every_kind
@every_sde
def test_loss_is_the_weighted_squared_error_of_the_score(sde, kind, weighting, x64):
    loss, x, t, noise = loss_and_draws(sde, some_score, prediction=kind, weighting=weighting)
    error = kind.score(sde, some_score(x, t), x, t) + noise / sde.sigma(t)[:, None]
    exact = weighting(sde, kind, t) * (error**2).mean(1)
    # Here the noise is x_t - alpha x_0 and the score up to x/sigma^2: differences that lose digits at small sigma.
    np.testing.assert_allclose(loss, exact, rtol=1e-8)


@every_kind
@every_sde
def test_the_true_conditional_target_has_no_loss(sde, kind, x64):
    def target(x, t):
        return kind.target(sde, jnp.asarray(X0), noise_of(sde, X0, x, t), t)

    loss, *_ = loss_and_draws(sde, target, prediction=kind)
    assert (loss < 1e-20).all()  # noise of order 1, recovered to 1e-10 where sigma is 1e-6


@every_kind
@every_sde
def test_loss_of_a_score_does_not_depend_on_how_it_is_predicted(sde, kind, x64):
    def as_kind(x, t):
        return convert(sde, some_score(x, t), x, t, kinds.Score(), kind)

    loss, *_ = loss_and_draws(sde, as_kind, prediction=kind)
    exact, *_ = loss_and_draws(sde, some_score, prediction=kinds.Score())
    np.testing.assert_allclose(loss, exact, rtol=1e-8)


def test_the_defaults_are_the_simple_loss_of_ddpm(x64):
    loss, x, t, noise = loss_and_draws(ss.VP(), some_score)
    np.testing.assert_allclose(loss, ((some_score(x, t) - noise) ** 2).mean(1), rtol=1e-10)


def test_flow_matching(x64):
    """RectifiedFlow, Velocity and Output: the squared distance of the velocity from eps - x_0."""
    loss, x, t, noise = loss_and_draws(
        ss.RectifiedFlow(), some_score, prediction=kinds.Velocity(), weighting=weightings.Output()
    )
    np.testing.assert_allclose(loss, ((some_score(x, t) - (noise - X0)) ** 2).mean(1), rtol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_training(sigma_data, x64):
    """Karras et al. (2022), eqs. 2 and 7: lambda |D(x) - x_0|^2 with D = c_skip x + c_out F."""
    loss, x, t, _ = loss_and_draws(
        ss.EDM(), some_score, prediction=kinds.EDM(sigma_data), weighting=weightings.EDM(sigma_data),
        times=ss.times.LogNormal(),
    )  # fmt: skip
    sigma = np.asarray(t)[:, None]
    total = sigma**2 + sigma_data**2
    denoised = sigma_data**2 / total * x + sigma * sigma_data / np.sqrt(total) * some_score(x, t)
    np.testing.assert_allclose(loss, (total / (sigma * sigma_data) ** 2 * (denoised - X0) ** 2).mean(1), rtol=1e-9)


# ---- the mean


@every_sde
def test_the_true_score_minimises_the_mean(sde, x64):
    """E loss(score + delta) - E loss(score) = E lambda |delta|^2: the cross term vanishes for the true score alone."""
    n = 20_000
    target = ss.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
    score, x0 = target.score(sde), target.sample(KEY, n)

    def off(x, t):  # of a size that counts alike at all times
        return (0.3 + 0.2 * jnp.sin(x)) / sde.sigma(t)[:, None]

    options = {"x0": x0, "prediction": kinds.Score(), "times": ss.times.Stratified()}
    best, *_ = loss_and_draws(sde, score, **options)
    worse, x, t, _ = loss_and_draws(sde, lambda x, t: score(x, t) + off(x, t), **options)
    excess = (sde.sigma(t)[:, None] ** 2 * off(x, t) ** 2).mean(1)
    gap = np.asarray(worse - best - excess)
    standard_error = gap.std() / math.sqrt(n)
    assert standard_error < 0.05 * excess.mean()  # a score off by a tenth of delta would show
    assert abs(gap.mean()) < 5 * standard_error  # false alarm 6e-7


def test_the_noise_is_standard_and_apart_from_time_and_data(x64):
    n = 20_000
    x0 = np.random.default_rng(0).normal(size=(n, 1))
    _, _, t, noise = loss_and_draws(ss.VP(), some_score, x0)
    values = np.stack([np.asarray(noise[:, 0]), np.asarray(t) - 0.5, x0[:, 0]])
    assert abs((values[0] ** 2).mean() - 1) < 5 * math.sqrt(2 / n)  # 5 standard errors, here and below
    correlations = np.corrcoef(values)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < 5 / math.sqrt(n)).all()
    assert abs(values[0].mean()) < 5 / math.sqrt(n)


# ---- forms


@pytest.mark.parametrize("event", [(), (5,), (4, 4, 3)])
@every_kind
def test_one_loss_for_each_sample_of_any_event(event, kind):
    x0 = jnp.ones((6, *event))
    loss = ss.denoising_score_matching(KEY, ss.VP(), lambda x, t: jnp.zeros_like(x), x0, prediction=kind)
    assert (loss.shape, loss.dtype) == ((6,), jnp.float32)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize("times", [ss.times.Uniform(), ss.times.LogNormal()], ids=name)
@every_sde
def test_float32_data_have_float32_losses(sde, times, x64):
    x0 = jnp.asarray(X0, jnp.float32)
    loss = jax.eval_shape(lambda sde: ss.denoising_score_matching(KEY, sde, some_score, x0, times=times), sde)
    assert loss.dtype == jnp.float32


def scaled(w, x, t):
    """A network of one weight."""
    return w * x


def test_new_parameters_and_numbers_do_not_compile_again():
    step = trees.jit(lambda predict, sde, x0: ss.denoising_score_matching(KEY, sde, predict, x0).mean())
    for w, beta_max in ((0.5, 20.0), (1.5, 10.0)):
        step(jax.tree_util.Partial(scaled, jnp.array(w)), ss.VP(0.1, beta_max), jnp.asarray(X0))
    assert step.cache_size() == 1


@pytest.mark.parametrize("predict", [lambda x, t: x[:, :1], lambda x, t: t, lambda x, t: x.T])
def test_a_prediction_of_another_shape_is_refused(predict):
    with pytest.raises(TypeError, match=r"expected predict\(x, t\) of shape \(32, 3\) like x, got \("):
        ss.denoising_score_matching(KEY, ss.VP(), predict, jnp.asarray(X0))
