"""Discrete chains against the composition and conditioning of Gaussians, done step by step in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import discrete
from tests.catalogue import SDES, name


def chains():
    return {
        "ddpm": discrete.ddpm(200),
        "short ddpm": discrete.ddpm(21),
        "ncsn": discrete.ncsn(30),
        "subvp": discrete.of_sde(ss.SubVP(), 40),
        "one level": discrete.Chain(jnp.array([0.8]), jnp.array([0.5])),
    }


@pytest.mark.parametrize("case", chains())
def test_kernels_compose_to_the_marginals_and_posteriors_are_conditionals(case, x64):
    chain = chains()[case]
    alpha, variance = 1.0, 0.0  # of x_{i-1} given x_0
    for i in range(chain.steps):
        m, v = float(chain.kernel_mean[i]), float(chain.variance_forward[i])
        # Joint law of (x_{i-1}, x_i) given x_0 = 1: regress the first on the second.
        total = m**2 * variance + v
        slope = m * variance / total
        assert chain.alpha[i] == pytest.approx(m * alpha, rel=1e-10)
        assert chain.sigma[i] ** 2 == pytest.approx(total, rel=1e-9)
        assert chain.posterior_noisy[i] == pytest.approx(slope, rel=1e-8, abs=1e-12)
        assert chain.posterior_data[i] == pytest.approx(alpha - slope * m * alpha, rel=1e-8)
        assert chain.variance_posterior[i] == pytest.approx(variance - slope * m * variance, rel=1e-7, abs=1e-15)
        alpha, variance = m * alpha, total


def test_ddpm_has_the_published_variances(x64):
    beta = np.linspace(1e-4, 0.02, 1000)  # Ho et al. 2020, section 4
    chain = discrete.ddpm(1000)
    np.testing.assert_allclose(chain.variance_forward, beta, rtol=1e-9)
    np.testing.assert_allclose(chain.alpha, np.sqrt(np.cumprod(1 - beta)), rtol=1e-12)
    np.testing.assert_allclose(chain.alpha**2 + chain.sigma**2, 1, rtol=1e-12)


def test_small_variances_keep_their_digits_in_float32():
    beta = np.linspace(0.1 / 4000, 20 / 4000, 4000)
    # v_i = sigma_i^2 - m_i^2 sigma_{i-1}^2 as it stands would be off by 1e-7/2.5e-5 = 0.5 %
    np.testing.assert_allclose(discrete.ddpm(4000).variance_forward, beta, rtol=2e-3)


def test_ncsn_levels_are_geometric(x64):
    chain = discrete.ncsn(232, 0.01, 50.0)
    np.testing.assert_allclose(chain.sigma[1:] / chain.sigma[:-1], 5000 ** (1 / 231), rtol=1e-10)
    assert (chain.alpha == 1).all() and chain.sigma[0] == pytest.approx(0.01) and chain.sigma[-1] == pytest.approx(50)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_levels_of_an_sde_are_its_own(sde, x64):
    chain = discrete.of_sde(sde, 50)
    t = chain.times(sde)
    np.testing.assert_allclose(sde.alpha(t), chain.alpha, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(sde.sigma(t), chain.sigma, rtol=1e-6)
    np.testing.assert_allclose(np.diff(sde.log_snr(t)), np.diff(sde.log_snr(t))[0], rtol=1e-5)


def test_the_last_level_of_ddpm_is_asked_at_the_end_of_vp(x64):
    t = discrete.ddpm(100).times(ss.VP())
    assert t[-1] == pytest.approx(1.0) and t[-2] <= 1.0 and (np.diff(t[:-3]) > 0).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: discrete.ddpm(20), "0.1, 20.0 and 20: beta_i is beta/steps"),
        (lambda: discrete.ddpm(100, 3.0, 2.0), "0 < beta_min <= beta_max < steps"),
        (lambda: discrete.ncsn(1), "steps > 1"),
        (lambda: discrete.ncsn(10, 2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: discrete.of_sde(ss.VP(), 0), "at least one level"),
        (lambda: discrete.Chain(jnp.ones(3), jnp.array([1.0, 1.0, 2.0])), "must rise"),
        (lambda: discrete.Chain(jnp.ones(2), jnp.array([0.0, 1.0])), "must be positive"),
        (lambda: discrete.ncsn(10, 1e-5, 1.0).times(ss.VP()), "its score does not know so little noise"),
    ],
)  # fmt: skip
def test_chains_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
