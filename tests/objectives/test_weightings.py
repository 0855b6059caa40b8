"""What each weighting makes of the squared score error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.objectives.weightings import Weighting
from tests.catalogue import PREDICTIONS, SDES, WEIGHTINGS, name, times_of

kinds = ss.predictions
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
every_kind = pytest.mark.parametrize("kind", PREDICTIONS, ids=name)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name)


@every_weighting
@every_kind
@every_sde
def test_weights_are_positive_and_finite_up_to_both_ends(weighting, kind, sde):
    t = jnp.asarray(times_of(sde), jnp.float32)
    weights = weighting(sde, kind, t)
    assert (weights.shape, weights.dtype) == (t.shape, jnp.float32)
    assert np.isfinite(weights).all() and (weights > 0).all()
    of_the_output = weights * kind.score_gain(sde, t) ** 2  # what the loss multiplies
    assert np.isfinite(of_the_output).all() and (of_the_output > 0).all()


@every_sde
def test_sigma_squared_counts_the_error_of_the_noise(sde, x64):
    t = jnp.asarray(times_of(sde))
    on_noise = ss.weightings.SigmaSquared()(sde, kinds.Noise(), t) * kinds.Noise().score_gain(sde, t) ** 2
    np.testing.assert_allclose(on_noise, 1, rtol=1e-13)


@every_sde
def test_half_the_likelihood_weight_is_how_fast_divergence_falls(sde, x64):
    """d/dt KL(p_t || q_t) = -lambda/2 E_p |score of p - score of q|^2, here for two Gaussians on the line."""

    def marginals(t):
        alpha, noise = sde.alpha(t), sde.sigma(t) ** 2
        return 0.5 * alpha, 0.3 * alpha**2 + noise, -0.2 * alpha, 1.1 * alpha**2 + noise

    def divergence(t):
        m, v, n, w = marginals(t)
        return 0.5 * (jnp.log(w / v) + (v + (m - n) ** 2) / w - 1)

    t = jnp.asarray(times_of(sde))
    m, v, n, w = marginals(t)
    squared_error = (1 / w - 1 / v) ** 2 * v + ((m - n) / w) ** 2  # (x - n)/w - (x - m)/v, a line in x ~ N(m, v)
    weight = ss.weightings.Likelihood()(sde, kinds.Noise(), t)
    falls = jax.vmap(jax.grad(divergence))(t)
    # Terms of order 1 are differenced to a divergence that dies out as alpha^2, 4e-5 for VP, 2e-4 for EDM.
    np.testing.assert_allclose(falls, -0.5 * weight * squared_error, rtol=1e-9)


@every_kind
@every_sde
def test_output_counts_the_error_of_the_output(sde, kind, x64):
    t = jnp.asarray(times_of(sde))
    np.testing.assert_allclose(ss.weightings.Output()(sde, kind, t) * kind.score_gain(sde, t) ** 2, 1, rtol=1e-13)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@every_sde
def test_edm_counts_the_error_of_edms_output(sde, sigma_data, x64):
    t, kind = jnp.asarray(times_of(sde)), kinds.EDM(sigma_data)
    on_output = ss.weightings.EDM(sigma_data)(sde, kind, t) * kind.score_gain(sde, t) ** 2
    np.testing.assert_allclose(on_output, 1, rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_the_published_weight_of_the_data_error(sigma_data, x64):
    sde, kind = ss.EDM(), kinds.Data()
    sigma = times_of(sde)
    t = jnp.asarray(sigma)
    on_data = ss.weightings.EDM(sigma_data)(sde, kind, t) * kind.score_gain(sde, t) ** 2
    np.testing.assert_allclose(on_data, (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2, rtol=1e-13)  # table 1


def test_edm_refuses_data_without_spread():
    with pytest.raises(ValueError, match="weightings.EDM: sigma_data must be positive, got 0.0"):
        ss.weightings.EDM(0.0)


def test_a_missing_method_is_named():
    class Empty(Weighting):
        pass

    with pytest.raises(TypeError, match=r"Empty must define __call__\(sde, prediction, t\)"):
        Empty()(ss.VP(), kinds.Noise(), jnp.ones(1))
