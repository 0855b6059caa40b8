"""Correctors against closed forms: on a Gaussian a Langevin step is affine, and its stationary law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import trees
from score_sde.sampling.correctors import Corrector
from tests.catalogue import SDES, describe, name

KEY = jax.random.key(0)


def ones(k):
    return jnp.ones((3, 2))


# --- the norm rule ---------------------------------------------------------------------------------------------------


@trees.jit
def variance_ratio(corrector, x, variance, key):
    """Variance after the corrector's steps over that of the target N(0, variance), from there."""
    sde = ss.VE()

    def draw(k):
        return jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)

    x = corrector.correct(sde, lambda x, t: -x / variance, jnp.sqrt(variance) * x, jnp.asarray(0.5, x.dtype), draw)
    return jnp.mean(jnp.square(x)) / variance


def stationary_ratio(snr, batch, size):
    x = jax.random.normal(jax.random.key(1), (batch, size))
    return float(variance_ratio(ss.Langevin(snr, steps=100), x, jnp.float32(3.0), KEY))


def test_in_many_dimensions_the_norm_rule_leaves_the_bias_of_its_snr():
    # With the state's variance v' and the target's v, e = 2 snr^2 v^2/v'; v' = v' (1 - e/v)^2 + 2e has the root
    # v' = (1 + snr^2) v.  (A rule with the norm that s has on the target's law would have v' = v/(1 - snr^2), the same
    # to first order.)  100 steps shrink the distance by e^-10.  Standard error of 2e5 numbers: 0.32 %.
    for snr, first_order in ((0.16, 1 / (1 - 0.16**2)), (0.5, None)):
        ratio = stationary_ratio(snr, 64, 3072)  # measured 1.0259 and 1.2483
        assert abs(ratio / (1 + snr**2) - 1) < 0.013, ratio  # 4 standard errors
        assert first_order is None or abs(ratio / first_order - 1) < 0.013, ratio


@pytest.mark.slow
@pytest.mark.parametrize("size, low, high", [(8, 1.4, 1.9), (64, 1.06, 1.12)])
def test_in_few_dimensions_the_norm_rule_is_off_by_more(size, low, high):
    ratio = stationary_ratio(0.16, 2**18 // size, size)  # measured 1.62 (heavy tails) and 1.09
    assert low < ratio < high, ratio


def numpy_langevin(x, s, z, snr, alpha, batch_norm):
    """Song et al. 2021, algorithms 4 and 5, as in their code."""
    x, s, z = (np.asarray(v, np.float64) for v in (x, s, z))
    noise_norm, score_norm = (np.linalg.norm(v.reshape(len(v), -1), axis=1) for v in (z, s))
    if batch_norm:
        noise_norm, score_norm = np.full(len(x), noise_norm.mean()), np.full(len(x), score_norm.mean())
    e = ((snr * noise_norm / score_norm) ** 2 * 2 * alpha).reshape(-1, 1, 1)
    return x + e * s + np.sqrt(2 * e) * z


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_steps_are_those_of_the_published_formula(batch_norm, steps, x64):
    sde, t = ss.VP(), jnp.asarray(0.3)
    x = jax.random.normal(KEY, (4, 3, 2))
    noises = jax.random.normal(jax.random.key(1), (steps + 1, 4, 3, 2))
    corrector = ss.Langevin(0.2, levels=100.0, steps=steps, batch_norm=batch_norm)

    def score(x, t):
        return -jnp.sin(x) - t[:, None, None]

    got = corrector.correct(sde, score, x, t, lambda k: noises[k])  # draw(0) is the predictor's
    expected = x
    for z in noises[1:]:
        s = score(jnp.asarray(expected), jnp.full(4, t))
        expected = numpy_langevin(expected, s, z, 0.2, 1 - float(sde.beta(t)) / 100, batch_norm)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_norms_are_per_sample_unless_asked_otherwise():
    sde, t = ss.VP(), jnp.float32(0.3)
    x, z = (jax.random.normal(jax.random.key(k), (3, 5)) for k in (0, 1))

    def first(corrector, mates):
        return corrector.correct(sde, lambda x, t: -x, jnp.concatenate([x[:1], mates]), t, lambda k: z)[0]

    for corrector in (ss.Langevin(), ss.AnnealedLangevin()):
        np.testing.assert_array_equal(first(corrector, x[1:]), first(corrector, 9 * x[1:]))
    published = ss.Langevin(batch_norm=True)
    assert np.all(first(published, x[1:]) != first(published, 9 * x[1:]))


# --- the annealed rule -----------------------------------------------------------------------------------------------


def test_the_annealed_chain_has_its_stationary_law(x64):
    # x <- x + e (m - x)/v + sqrt(2e) z in each direction, from 0: after n steps the mean is m (1 - r^n) and the
    # variance 2e (1 - r^2n)/(1 - r^2), r = 1 - e/v.  Read off a batch of unit vectors, exactly.
    sde, t, snr, steps = ss.VE(), jnp.asarray(0.55), 0.4, 60
    mean, variances = np.array([1.0, -0.5]), np.array([0.3, 2.0])
    v = variances + float(sde.sigma(t)) ** 2
    e = 2 * (snr * float(sde.sigma(t))) ** 2
    score = ss.Gaussian(jnp.asarray(mean), jnp.asarray(variances)).score(sde)
    member = jnp.arange(steps + 1)[:, None]  # number k draws 1 at step k, and 0 otherwise
    corrector = ss.AnnealedLangevin(snr, steps=steps)
    x = corrector.correct(
        sde, score, jnp.zeros((steps + 1, 2)), t, lambda k: jnp.where(member == k, jnp.ones((1, 2)), 0)
    )
    r = 1 - e / v
    np.testing.assert_allclose(x[0], mean * (1 - r**steps), rtol=1e-12)
    variance = np.square(np.asarray(x[1:] - x[:1])).sum(0)
    np.testing.assert_allclose(variance, 2 * e * (1 - r ** (2 * steps)) / (1 - r**2), rtol=1e-11)
    np.testing.assert_allclose(variance, 2 * e / (1 - r**2), rtol=1e-6)  # stationary: r^120 is at most 2e-7
    np.testing.assert_allclose(variance, v / (1 - snr**2 * float(sde.sigma(t)) ** 2 / v), rtol=1e-6)  # the same


@pytest.mark.parametrize("kind", [ss.AnnealedLangevin, ss.Langevin])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_levels_give_the_published_alpha(sde, kind, x64):
    # VP: alpha = 1 - beta(t)/levels.  Seen in the size of a step on the score 1, e = x' - x - sqrt(2e).
    t, levels = jnp.asarray(0.5 * float(sde.t_max)), 50.0

    def size(corrector):
        q = corrector.correct(sde, lambda x, t: jnp.ones_like(x), jnp.zeros((3, 2)), t, ones)[0, 0]
        return (np.sqrt(0.5 + float(q)) - np.sqrt(0.5)) ** 2

    alpha = size(kind(0.2, levels=levels)) / size(kind(0.2))
    expected = (
        1 - float(sde.beta(t)) / levels if isinstance(sde, ss.VP) else 1 + 2 * float(sde.drift_factor(t)) / levels
    )
    np.testing.assert_allclose(alpha, expected, rtol=1e-9)
    assert (expected == 1) == (name(sde) in ("VE", "EDM"))
    plain = 2 * (0.2 * float(sde.sigma(t))) ** 2 if kind is ss.AnnealedLangevin else 2 * 0.2**2
    np.testing.assert_allclose(size(kind(0.2)), plain, rtol=1e-9)


@pytest.mark.parametrize("corrector", [ss.Langevin(steps=2), ss.AnnealedLangevin()], ids=describe)
def test_where_there_is_no_noise_the_state_stays(corrector):
    def score(x, t):  # infinite at t = 0, where nobody may ask
        return -x / t[:, None]

    x = jax.random.normal(KEY, (3, 2))
    np.testing.assert_array_equal(corrector.correct(ss.VP(), score, x, jnp.float32(0.0), ones), x)
    assert np.all(corrector.correct(ss.VP(), score, x, jnp.float32(0.1), ones) != x)


# --- predictor-corrector ---------------------------------------------------------------------------------------------


class Tenfold(ss.Sampler):
    """Moves the digits of x one to the left."""

    def advance(self, sde, score, x, memory, row, draw):
        return 10 * x, memory


class AddTime(Corrector):
    """Adds the time to x."""

    def root(self, sigma, score, noise):
        raise AssertionError

    def correct(self, sde, score, x, t, draw):
        return x + t


@pytest.mark.parametrize("corrector_first, result", [(False, 42.0), (True, 840.0)])
def test_the_order_of_predictor_and_corrector_and_their_times(corrector_first, result):
    sampler = ss.PredictorCorrector(Tenfold(), AddTime(), corrector_first)
    out = ss.sample(
        KEY, ss.EDM(), lambda x, t: -x, (1, 1), sampler=sampler, grid=jnp.array([8.0, 4.0, 2.0]),
        x_init=jnp.zeros((1, 1)),
    )  # fmt: skip
    assert out.x.item() == result
    assert out.nfe.tolist() == [4]  # a correction is counted as an evaluation


@pytest.mark.parametrize("corrector_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_predictor_of_two_stages_is_corrected_once_per_step(corrector_first):
    sde, calls = ss.VP(), []

    def score(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0], ordered=True)
        return -x

    sampler = ss.PredictorCorrector(ss.Heun(), ss.AnnealedLangevin(steps=2), corrector_first)
    out = ss.sample(KEY, sde, score, (3, 2), sampler=sampler, grid=jnp.array([0.9, 0.5, 0.1]))
    jax.effects_barrier()
    one, two = ([0.9] * 3 + [0.5], [0.5] * 3 + [0.1]) if corrector_first else ([0.9] + [0.5] * 3, [0.5] + [0.1] * 3)
    np.testing.assert_allclose(calls, one + two, rtol=1e-6)
    assert out.nfe.tolist() == [8] * 3


@pytest.mark.parametrize("predictor", [None, pytest.param(ss.ReverseDiffusion(), marks=pytest.mark.slow)], ids=describe)
def test_predictor_corrector_samples_have_the_law_of_their_chain(predictor):
    # On a Gaussian each direction follows a scalar recursion, in closed form.
    sde, snr, steps, per_step = ss.VE(), 0.4, 80, 3
    mean, variances = np.array([1.0, -0.5]), np.array([0.3, 0.1])
    sampler = ss.PredictorCorrector(predictor, ss.AnnealedLangevin(snr, steps=per_step))
    target = ss.Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(variances, jnp.float32))
    x = np.asarray(ss.sample(KEY, sde, target.score(sde), (4000, 2), sampler=sampler, steps=steps).x, np.float64)
    sigma = np.asarray(sde.sigma(jnp.linspace(1.0, 1e-5, steps + 1)), np.float64)
    m, v = np.zeros(2), np.full(2, sigma[0] ** 2)
    for now, then in zip(sigma[:-1], sigma[1:], strict=True):
        if predictor is not None:  # x + w s + sqrt(w) z
            w = now**2 - then**2
            r = 1 - w / (variances + now**2)
            m, v = mean + r * (m - mean), r**2 * v + w
        e = 2 * (snr * then) ** 2
        r = 1 - e / (variances + then**2)
        for _ in range(per_step):
            m, v = mean + r * (m - mean), r**2 * v + 2 * e
    z = np.abs(x.mean(0) - m) / np.sqrt(v / len(x)), np.abs(np.square(x - m).mean(0) / v - 1) / np.sqrt(2 / len(x))
    assert np.max(z) < 4, z  # 4 statistics: chance of one beyond 2.5e-4
    # The chain itself is near the target: the bias of a fixed snr is at most 1/(1 - snr^2), 19 %; measured 14 % with no
    # predictor, 1.5 % with one.
    assert np.abs(m - mean).max() < 1e-3 and np.all(np.abs(v / (variances + sigma[-1] ** 2) - 1) < 0.19), (m, v)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(snr=-0.1), "snr must be at least 0, got -0.1"),
        (dict(levels=0.5), "levels must be at least 1, got 0.5"),
        (dict(steps=0), "steps must be at least 1, got 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [ss.Langevin, ss.AnnealedLangevin])
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**settings)
