"""Scores with bounded data predictions: exact where nothing is cut, in range everywhere, with every solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.predictions import Score
from tests.catalogue import SDES, name

KEY = jax.random.key(0)
RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)]
EVENT = (4, 3, 2)


def score(x, t):
    """-x/2 and some of the past: predicts data within and beyond any of the ranges."""
    return -0.5 * x + 0.3 * jnp.sin(3 * x)


def states(sde, size=6):
    """States and times whose log-SNRs are spread over -2 to 2."""
    x = 1.5 * jax.random.normal(KEY, (size, *EVENT))
    return x, sde.inverse_log_snr(jnp.linspace(-2.0, 2.0, size))


def predicted(sde, score, x, t):
    return np.asarray(Score().data_and_noise(sde, score(x, t), x, t)[0])


def dynamic(data, low, high, quantile):
    """Imagen, section 2.3, in numpy and about the middle of the range."""
    out = np.empty_like(data)
    for i, sample in enumerate(data):
        unit = (2 * sample - low - high) / (high - low)
        s = max(np.quantile(np.abs(unit), quantile), 1.0)
        out[i] = (low + high) / 2 + (high - low) / 2 * np.clip(unit, -s, s) / s
    return out


@pytest.mark.parametrize("low, high", RANGES)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_predicted_data_are_those_of_the_formula(sde, low, high, x64):
    x, t = states(sde)
    data = predicted(sde, score, x, t)
    assert (data < low).any() and (data > high).any()
    clipped = predicted(sde, ss.Clipped(score, sde, low, high), x, t)
    np.testing.assert_allclose(clipped, np.clip(data, low, high), rtol=0, atol=1e-12)  # rounding of numbers near 10
    for quantile in (0.9, 0.995):
        bounded = predicted(sde, ss.DynamicThreshold(score, sde, low, high, quantile), x, t)
        np.testing.assert_allclose(bounded, dynamic(data, low, high, quantile), rtol=0, atol=1e-12)
        assert bounded.min() > low - 1e-12 and bounded.max() < high + 1e-12


def test_the_defaults_are_the_published_ones(x64):
    sde = ss.VP()
    x, t = states(sde)
    data = predicted(sde, score, x, t)
    np.testing.assert_allclose(predicted(sde, ss.Clipped(score, sde), x, t), np.clip(data, -1, 1), rtol=0, atol=1e-12)
    bounded = predicted(sde, ss.DynamicThreshold(score, sde), x, t)
    np.testing.assert_allclose(bounded, dynamic(data, -1.0, 1.0, 0.995), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [ss.Clipped, ss.DynamicThreshold])
@pytest.mark.parametrize("sde", [ss.VP(), ss.VE(), ss.RectifiedFlow()], ids=name)
def test_the_score_is_untouched_where_nothing_is_cut_whatever_the_batch(sde, kind, x64):
    x, t = states(sde)
    x = x.at[0].multiply(0.1)
    bounded, plain, data = kind(score, sde, -2.5, 2.0), score(x, t), predicted(sde, score, x, t)
    inside = (data > -2.5) & (data < 2.0)
    whole = inside if kind is ss.Clipped else inside & inside.all((1, 2, 3), keepdims=True)  # it acts on whole samples
    assert whole.any() and not whole.all()
    np.testing.assert_array_equal(bounded(x, t)[whole], plain[whole])  # to the last bit
    assert np.all(bounded(x, t)[~inside] != plain[~inside])
    np.testing.assert_allclose(bounded(x[2:3], t[2:3]), bounded(x, t)[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [ss.Clipped, ss.DynamicThreshold])
def test_samples_are_in_range(kind):
    sde, shape = ss.VP(), (5, *EVENT)
    free, out = (
        ss.sample(KEY, sde, kind(score, sde, *ends), shape, sampler=ss.DDIM(), steps=10, denoise=True).x
        for ends in ((-50.0, 50.0), (0.0, 1.0))
    )
    assert np.abs(free).max() > 1.5
    assert out.min() > -1e-4 and out.max() < 1 + 1e-4  # float32: a difference of x/alpha and sigma^2 s/alpha


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ss.Clipped, ss.DynamicThreshold])
def test_adaptive_samples_are_in_range(kind):
    # At t_sampling sigma is 0.01, and x within that of its predicted data, which are in range.
    sde = ss.VP()
    x = ss.sample_adaptive(KEY, sde, kind(score, sde, 0.0, 1.0), (5, *EVENT)).x
    sigma = float(sde.sigma(jnp.float32(sde.t_sampling)))
    assert x.min() > -5 * sigma and x.max() < 1 + 5 * sigma


@pytest.mark.parametrize("kind", [ss.Clipped, ss.DynamicThreshold])
def test_a_score_that_is_not_like_x_is_refused(kind):
    x, t = states(ss.VP())
    with pytest.raises(TypeError, match="got shape"):
        kind(lambda x, t: x[:, :1], ss.VP())(x, t)
